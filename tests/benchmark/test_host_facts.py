import pytest

from mobileprune.benchmark.host_facts import host_device, simd_features


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "processor\t: 0\nflags\t: fpu sse2 avx512f avx avx2 ht\nflags\t: sse2\n",
            ("sse2", "avx", "avx2", "avx512f"),
        ),
        ("Features\t: fp asimd evtstrm asimdhp asimddp\n", ("asimd", "asimdhp", "asimddp")),
        ("vendor: no flags here\n", ()),
        ("", ()),
    ],
)
def test_vector_instructions_are_read_from_what_the_kernel_says(text, found):
    assert simd_features(text) == found


def test_this_machine_has_a_name():
    assert host_device().startswith("host (")
    assert len(host_device()) > len("host ()")
    assert len(set(simd_features())) == len(simd_features())
