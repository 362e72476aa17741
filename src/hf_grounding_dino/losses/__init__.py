"""Matching, criterion, targets and denoising."""
