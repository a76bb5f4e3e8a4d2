"""First principal components: of the features, and of what they contribute to a class."""

from __future__ import annotations

import torch
from torch import Tensor

from wsod.maps.tape import Tape

__all__ = ["eigencam", "eigengradcam"]


def eigencam(tape: Tape, cases: Tensor, *, create_graph: bool = False, centre: bool = True) -> Tensor:
    """First principal component of the cells' feature vectors (Muhammad & Yeasin, "Eigen-CAM", IJCNN 2020).

    With X (h·w, D) the cells' features, the map is X·v for the first right singular vector v, computed as u·σ
    from the smaller of the two Gram matrices, X·Xᵀ or Xᵀ·X. The sign of a singular vector is arbitrary; here
    it is the one that makes the map grow with the length of the feature vectors: Σ map·(‖X‖ - mean ‖X‖) ≥ 0,
    where ‖X‖ is before centring; without centring Σ map·‖X‖ ≥ 0, so that the map of rectified features is
    nowhere negative. The map is the same for every class of an image.

    Differs from the paper: each channel's mean over the cells is subtracted first, as in the implementations
    in use (`centre=False`: as written).

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: differentiable with respect to the features (once: the first derivative is exact).
        centre: subtract the channel means.

    Returns:
        (M, h, w).
    """
    # eigenvectors of nearly equal eigenvalues are fixed by the last digits: float64
    cells = tape.features.flatten(2).transpose(1, 2).double()
    maps = _component(cells, cells.norm(dim=2), centre, create_graph).to(tape.features.dtype)
    return maps.reshape(-1, *tape.features.shape[2:])[cases[:, 0].to(maps.device)]


def eigengradcam(tape: Tape, cases: Tensor, *, create_graph: bool = False, centre: bool = True) -> Tensor:
    """First principal component of the contributions g_d·A_d, cell by cell (class-specific Eigen-CAM).

    Muhammad & Yeasin, "Eigen-CAM", IJCNN 2020, with the gradient product of pytorch-grad-cam (Gildenblat
    2021). As `eigencam`, with X (h·w, D) = g⊙A; the sign is the one that makes the map grow with what a cell
    contributes to the score: Σ map·(c - mean c) ≥ 0 with c = Σ_d g_d·A_d.

    Args:
        tape: the forward pass.
        cases: (M, 2) rows of (row, label).
        create_graph: keep the graph of the gradient (once: the first derivative is exact).
        centre: subtract the channel means.

    Returns:
        (M, h, w).
    """
    product = tape.gradient(cases, create_graph) * tape.select(cases)
    # gradients of a mean-pooled score are small, and their squares far smaller; the scale is put back
    scale = product.detach().abs().amax((1, 2, 3)).clamp(min=torch.finfo(product.dtype).tiny)[:, None]
    cells = product.flatten(2).transpose(1, 2).double() / scale[:, :, None]
    maps = _component(cells, cells.sum(2), centre, create_graph) * scale
    return maps.to(product.dtype).reshape(-1, *product.shape[2:])


def _component(cells: Tensor, grows_with: Tensor, centre: bool, differentiable: bool) -> Tensor:
    """(N, n, D) → (N, n) u·σ of the first component, its sign such that it grows with `grows_with` (N, n)."""
    if centre:
        cells = cells - cells.mean(1, keepdim=True)
    if cells.shape[1] <= cells.shape[2]:
        gram = cells @ cells.transpose(1, 2)
        first = _first_eigenvector(gram, differentiable)
        # u·σ, with σ² = uᵀ·X·Xᵀ·u
        maps = first * (first * (gram @ first)).sum(1, keepdim=True).clamp(min=0).sqrt()
    else:
        maps = cells @ _first_eigenvector(cells.transpose(1, 2) @ cells, differentiable)
    maps = maps.squeeze(2)
    # without centring the component of features that are not negative has one sign (Perron-Frobenius)
    grows_with = grows_with - grows_with.mean(1, keepdim=True) if centre else grows_with
    agreement = (maps * grows_with).sum(1, keepdim=True)
    return torch.where(agreement < 0, -maps, maps)


def _first_eigenvector(gram: Tensor, differentiable: bool) -> Tensor:
    """(N, n, n) symmetric → (N, n, 1) eigenvector of the largest eigenvalue.

    The derivative of torch's `eigh` divides by the gaps between all eigenvalues, which are zero for dead
    channels. Of the first vector alone it is dv = (λ - G)⁺·dG·v, added here as a term that is zero.
    """
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(gram)
        first: Tensor = vectors[:, :, -1:]
        if differentiable:
            gaps = values[:, -1:] - values
            inverse = torch.where(gaps > 1e-12 * values[:, -1:], 1 / gaps, 0.0)
            inverse = (vectors * inverse[:, None, :]) @ vectors.transpose(1, 2)
    if not differentiable:
        return first
    moved = gram @ first
    vector: Tensor = first + inverse @ (moved - moved.detach())
    return vector
