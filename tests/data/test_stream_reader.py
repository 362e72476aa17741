"""Records of a stream by position: each read once where positions grow."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_grounding_dino.data.records import DataError, Record
from hf_grounding_dino.data.stream_reader import StreamReader


class Stream:
    """Numbered records; counts how often it was begun and how many it gave."""

    name, label_names, category_ids, findings = "counted", (), (), ()

    def __init__(self, length: int) -> None:
        self.length = length
        self.begun = self.given = 0

    def __iter__(self) -> Iterator[Record]:
        self.begun += 1
        for i in range(self.length):
            self.given += 1
            yield Record(image_id=i, image=Path("none.png"), boxes=torch.zeros(0, 4))

    def shard(self, index: int, count: int) -> Stream:
        raise NotImplementedError


def test_a_stream_is_read_once_where_positions_grow() -> None:
    """Positions 0, 2, (2, 3, 4 for a broken one) and 3 of 6 records: one beginning, 5 records."""
    stream = Stream(6)
    reader = StreamReader(stream)
    found = [reader.read(0), reader.read(2), reader.read(3, keep_from=2), reader.read(4, keep_from=2), reader.read(3)]
    assert [record.image_id for record in found] == [0, 2, 3, 4, 3]
    assert (stream.begun, stream.given) == (1, 5)


def test_a_stream_begins_again() -> None:
    """Position 8 of 3 records is record 2 in the third reading; 7, which is gone by then, needs three more readings."""
    stream = Stream(3)
    reader = StreamReader(stream)
    assert reader.read(8).image_id == 2 and stream.begun == 3
    assert reader.read(7).image_id == 1 and stream.begun == 6
    assert pickle.loads(pickle.dumps(reader)).read(1).image_id == 1
    with pytest.raises(DataError, match="counted: the stream holds no record, or too few for so many processes"):
        StreamReader(Stream(0)).read(0)
