import numpy as np
import pytest

from dlm_edge.quantized import container_bits, dequantize, pack, unpack


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 16), (3, 48), (7, 80), (5, 272)])
def test_unpack_is_the_inverse_of_pack(bits: int, shape: tuple[int, int]) -> None:
    codes = np.random.default_rng(0).integers(0, 2 ** container_bits(bits), shape, dtype=np.uint8)
    scales = np.ones((shape[0], shape[1] // 16), np.float32)
    tensor = pack(codes, scales, bits)
    assert tensor.packed.dtype == np.uint8
    assert (tensor.shape, tensor.group_size) == (shape, 16)
    assert (unpack(tensor) == codes).all()


@pytest.mark.parametrize(
    ("bits", "codes", "first_bytes"),
    [
        (2, [1, 2, 3, 0], [0b00_11_10_01]),
        (3, [4, 11, 8, 7], [0xB4, 0x78]),  # three bits live in a four-bit container
        (4, [1, 15, 8, 0], [0xF1, 0x08]),
        (8, [0, 255, 128, 7], [0, 255, 128, 7]),
    ],
)
def test_lowest_bits_come_first(bits: int, codes: list[int], first_bytes: list[int]) -> None:
    row = np.array([codes + [0] * 12], np.uint8)
    assert pack(row, np.ones((1, 1), np.float32), bits).packed[0, 0, : len(first_bytes)].tolist() == first_bytes


@pytest.mark.parametrize(("bits", "zero"), [(2, 2), (3, 8), (4, 8), (8, 128)])
def test_the_zero_is_the_middle_of_the_container(bits: int, zero: int) -> None:
    codes = np.full((1, 32), zero, np.uint8)
    codes[0, 16:] -= 1
    values = dequantize(pack(codes, np.array([[3.0, 0.5]], np.float32), bits))
    assert (values[0, :16] == 0).all()
    assert (values[0, 16:] == -0.5).all()
