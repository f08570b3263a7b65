"""Images brought to another size and number of channels, whether they are in memory or in a table."""

import torch

from clf.evaluate.pixels import adapt


def test_a_table_is_converted_bit_by_bit() -> None:
    pixels = torch.randint(0, 256, (1100, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    class Read:
        shape = tuple(pixels.shape)

        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor:
            asked.append(len(pixels[rows]))
            return pixels[rows]

    for size, channels in [(8, 1), (5, 3), (5, 1)]:
        assert torch.equal(adapt(Read(), size, channels)[:], adapt(pixels, size, channels)[:])
    assert max(asked) <= 1024 and sum(asked) == 3 * 1100
