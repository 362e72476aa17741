"""The deformable-attention operator: definition, dispatch and build."""
