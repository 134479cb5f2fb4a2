"""Products by oneDNN and without it, against float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from packager.formats.quant import products  # noqa: E402


@pytest.fixture(params=[True, False], ids=["oneDNN", "none"])
def onednn(request, monkeypatch) -> None:
    if not request.param:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")


def close(found, right) -> None:
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, products.BLOCK_ROWS - 1, products.BLOCK_ROWS + 1])
def test_products_of_parts_and_transposes_are_right(onednn, rows) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(70, rows + 5, generator=generator)
    a, b = whole[:, 3 : rows + 3].T, torch.randn(9, 70, generator=generator)
    right = a.double() @ b.double().T
    close(products.product(a, products.prepared(b)), right)
    for sign in (1, -1):
        place = torch.ones(rows + 2, 12)
        products.add_product(place[1:-1, :9], a, b, sign)
        close(place[1:-1, :9], 1 + sign * right)
        assert (place[:, 9:] == 1).all()
        assert (place[[0, -1]] == 1).all()


def test_nothing_to_multiply_adds_nothing(onednn) -> None:
    out = torch.ones(3, 2)
    products.add_product(out, torch.empty(3, 0), torch.empty(2, 0))
    assert (out == 1).all()
