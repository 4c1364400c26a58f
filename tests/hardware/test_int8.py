"""Whether a processor is known to lack products of int8."""

import pytest

from mobileclip.hardware import lacks_int8_products


@pytest.mark.parametrize(
    ("told", "lacks"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", True),
        ("flags\t\t: fpu avx512_vnni\n", False),
        ("flags\t\t: fpu avx_vnni\n", False),
        ("processor : 0\nFeatures\t: fp asimd asimddp\n", False),
        ("processor : 0\nFeatures\t: fp asimd\n", True),
        ("processor : 0\n", False),
    ],
)
def test_flags_of_linux_tell(told, lacks, tmp_path):
    (tmp_path / "cpuinfo").write_text(told, encoding="utf-8")
    assert lacks_int8_products(tmp_path / "cpuinfo") is lacks


def test_elsewhere_nobody_can_tell(tmp_path):
    assert not lacks_int8_products(tmp_path / "none")
