"""Laws of random matrices: what simulations tend to, and what is published."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from isometry import measure
from isometry.spectra import Spectrum, laws
from isometry.spectra.laws import (
    BernoulliGaussian,
    BernoulliOrthogonal,
    CircularConvolution,
    FussCatalan,
    Isometry,
    Law,
    MagnitudeMask,
    MarchenkoPastur,
    NormLaw,
    RandomMask,
    Residual,
    magnitude_variance,
)


def haar(n: int) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    return q * r.diagonal().sign()


def gaussian(n: int) -> Tensor:
    return torch.randn(n, n, dtype=torch.float64) / n**0.5


def gates(n: int, p: float) -> Tensor:
    """Exactly p n open gates: a Bernoulli number of them would fluctuate by sqrt(p (1 - p) / n)."""
    return torch.zeros(n, dtype=torch.float64).index_fill(0, torch.randperm(n)[: round(p * n)], 1.0)[:, None]


def kept(w: Tensor, p: float) -> Tensor:
    return w * (w.abs() >= w.abs().flatten().quantile(1 - p) if w.numel() < 2**24 else 1)


def simulate(law: Law, n: int) -> Spectrum:
    """Two draws of the map that the law speaks of, at size n."""

    def draw() -> Tensor:
        if isinstance(law, MarchenkoPastur):
            return law.sigma * torch.randn(round(law.ratio * n), n, dtype=torch.float64) / n**0.5
        if isinstance(law, RandomMask):
            return haar(n) * (torch.rand(n, n) < law.density_kept)
        product = torch.eye(n, dtype=torch.float64)
        if isinstance(law, Residual):
            for _ in range(60):
                product = product + gaussian(n) @ product * math.sqrt(law.strength / 60)
            return product
        for _ in range(law.layers):
            product = law.sigma * (haar if isinstance(law, BernoulliOrthogonal) else gaussian)(n) @ product
            if not isinstance(law, FussCatalan):
                product = gates(n, law.open) * product
        return product

    torch.manual_seed(0)
    return Spectrum.of(torch.stack([torch.linalg.svdvals(draw()) for _ in range(2)]))


SIMULATED = [
    FussCatalan(1), FussCatalan(2, 1.3), FussCatalan(4), MarchenkoPastur(0.5), MarchenkoPastur(0.25, 2.0),
    BernoulliOrthogonal(1), BernoulliOrthogonal(2), BernoulliOrthogonal(4, 0.5, math.sqrt(2)), BernoulliOrthogonal(3, 0.9),
    BernoulliOrthogonal(6, 0.9), BernoulliGaussian(1), BernoulliGaussian(4), BernoulliGaussian(6, 0.8),
    RandomMask(0.1), RandomMask(0.5), RandomMask(0.9), Residual(0.25), Residual(1.0),
]  # fmt: skip


@pytest.mark.parametrize("law", SIMULATED, ids=str)
def test_laws_are_what_simulations_tend_to(law: Law) -> None:
    gaps = {n: law.distance(simulate(law, n)) for n in (60, 480)}
    assert gaps[480] < 0.02
    assert gaps[480] < gaps[60] or gaps[480] < 1e-9
    found = simulate(law, 480)
    assert law.mean_jsv == pytest.approx(found.mean, rel=0.02)
    assert law.moment(1) == pytest.approx(found.mean_square, rel=0.04)
    assert law.edges[1] == pytest.approx(found.max, rel=0.06)


@pytest.mark.parametrize("law", [law for law in SIMULATED if law.edges[0] < law.edges[1]], ids=str)
def test_densities_have_the_moments_and_the_mass(law: Law) -> None:
    atoms = sum(law.atoms.values())
    low, high = law.edges
    # In log s: densities may diverge at zero.
    start = math.log(low or high * 1e-9)
    points = np.linspace(start, math.log(high), 60_001)
    s = np.exp(points)
    weights = law.pdf(s) * s
    assert integrate.trapezoid(weights, points) == pytest.approx(1 - atoms, rel=0.02)
    second = integrate.trapezoid(weights * s**2, points) + sum(a * p**2 for p, a in law.atoms.items())
    assert second == pytest.approx(law.moment(1), rel=0.03)
    assert Law.moment(law, 1) == pytest.approx(law.moment(1), rel=0.01)
    assert law.cdf(np.array([high * 1.001]))[0] == pytest.approx(1, abs=1e-9)
    assert law.cdf(np.array([-1.0]))[0] == 0


def test_fuss_catalan_has_the_published_moments() -> None:
    assert [round(FussCatalan(n).mean_jsv, 4) for n in (1, 2, 4, 8)] == [0.8488, 0.75, 0.625, 0.4922]
    assert [FussCatalan(n).edges[1] ** 2 for n in (1, 2, 4)] == pytest.approx([4, 6.75, 12.207], rel=1e-4)
    assert FussCatalan(3).moment(2) == pytest.approx(4)
    assert FussCatalan(3).moment(3) == pytest.approx(4 * 11 / 2)
    assert FussCatalan(4).log_mean == -2


def test_gated_products_have_the_published_edges() -> None:
    for law, edge in (
        (BernoulliOrthogonal(4), 9.48),
        (BernoulliOrthogonal(20, 0.9), 5.89),
        (BernoulliGaussian(4), 21.9),
    ):
        assert law.edges[1] ** 2 / law.moment(1) == pytest.approx(edge, rel=2e-3)
    assert BernoulliOrthogonal(20, 0.99).edges[1] ** 2 / BernoulliOrthogonal(20, 0.99).moment(1) == pytest.approx(
        1.223, 1e-3
    )
    assert BernoulliOrthogonal(6, 0.9).atoms == pytest.approx({0.0: 0.1, 1.0: 0.4})


def test_pruned_layers_have_the_published_edges() -> None:
    squares = [RandomMask(p).edges[1] ** 2 for p in (0.9, 0.5, 0.2, 0.1)]
    assert squares == pytest.approx([1.8134, 1.6875, 0.7757, 0.3966], rel=1e-3)
    assert RandomMask(0.9).edges[0] ** 2 == pytest.approx(0.2541, rel=1e-3)
    assert [round(magnitude_variance(p), 4) for p in (0.5, 0.1, 0.02, 1.0)] == [0.9287, 0.4393, 0.144, 1.0]


def test_magnitude_pruned_gaussians_are_gaussians_of_less_variance() -> None:
    torch.manual_seed(0)
    w = [kept(gaussian(500), 0.1) for _ in range(3)]
    found = Spectrum.of(torch.linalg.svdvals(w[2] @ w[1] @ w[0]))
    law = MagnitudeMask(3, kept=0.1)
    assert law.distance(found) < 0.03
    assert law.moment(1) == pytest.approx(magnitude_variance(0.1) ** 3)
    assert law.edges == pytest.approx(FussCatalan(3, math.sqrt(magnitude_variance(0.1))).edges)


def test_a_circular_convolution_has_the_values_of_its_fourier_transform() -> None:
    torch.manual_seed(0)
    for channels, stride in ((3, 1), (5, 2)):
        conv = nn.Conv2d(2, channels, 3, stride, padding=1, padding_mode="circular", bias=False).double()
        law = CircularConvolution(conv.weight.detach(), (6, 6), (stride, stride))
        report = measure(conv, torch.randn(2, 2, 6, 6).double(), method="exact")
        assert law.distance(report.spectrum) < 0.02  # values apart by rounding only
        assert law.mean_jsv == pytest.approx(report.mean_jsv)
        assert law.edges == pytest.approx((report.min_jsv, report.max_jsv))
        assert sum(law.atoms.values()) == pytest.approx(1)


def test_open_gates_leave_gaussian_products_at_any_depth() -> None:
    for depth in (2, 8, 20, 50):
        law, known = BernoulliGaussian(depth, 1.0), FussCatalan(depth)
        assert law.mean_jsv == pytest.approx(known.mean_jsv, rel=2e-3)
        s = known.edges[1] * np.geomspace(1e-12, 1, 50)
        assert law.cdf(s) == pytest.approx(known.cdf(s), abs=3e-3)


def test_deep_products_have_the_mass_that_simulations_put_near_zero() -> None:
    torch.manual_seed(0)
    product = torch.eye(300, dtype=torch.float64)
    for _ in range(16):
        product = gaussian(300) @ product
    assert FussCatalan(16).distance(Spectrum.of(torch.linalg.svdvals(product))) < 0.02


def test_residual_edges_are_reciprocal() -> None:
    low, high = Residual(1.0).edges
    assert low * high == pytest.approx(1)
    assert high**2 == pytest.approx(21.09, rel=1e-3)
    assert Residual(0.25).condition_number == pytest.approx(4.234, rel=1e-3)


def test_a_wide_relu_net_follows_the_gated_law() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(400, 400, bias=False), nn.ReLU()]
        nn.init.orthogonal_(layers[-2].weight, gain=math.sqrt(2))
    report = measure(nn.Sequential(*layers), torch.randn(2, 400), method="exact")
    assert BernoulliOrthogonal(4, 0.5, math.sqrt(2)).distance(report.spectrum) < 0.06


def test_the_law_of_layer_norm_is_exact_at_any_width() -> None:
    x = torch.randn(1, 40, dtype=torch.float64)
    norm = nn.LayerNorm(40, eps=0.0).double()
    law = NormLaw(40, float(x.std(unbiased=False)))
    report = measure(norm, x)
    assert report.mean_jsv == pytest.approx(law.mean_jsv, rel=1e-9)
    assert law.distance(report.spectrum) < 1e-9


def test_the_law_of_rms_norm_is_exact_at_any_width() -> None:
    x = torch.randn(1, 40, dtype=torch.float64)
    rms = nn.RMSNorm(40, eps=0.0).double()
    law = NormLaw(40, float(x.square().mean().sqrt()), lost=1)
    assert law.distance(measure(rms, x).spectrum) < 1e-9


def test_orthogonal_nets_are_isometries_at_any_width() -> None:
    deep = nn.Sequential(*[nn.Linear(12, 12, bias=False) for _ in range(5)]).double()
    for layer in deep:
        nn.init.orthogonal_(layer.weight, gain=1.1)
    law = Isometry(1.1**5)
    assert law.distance(measure(deep, torch.randn(3, 12).double()).spectrum) < 1e-12
    assert law.mean_jsv == pytest.approx(measure(deep, torch.randn(3, 12).double()).mean_jsv)
    assert law.moment(2) == pytest.approx(1.1**20)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: FussCatalan(0), id="no layers"),
        pytest.param(lambda: MarchenkoPastur(1.5), id="ratio above one"),
        pytest.param(lambda: BernoulliGaussian(2, 0.0), id="no open gates"),
        pytest.param(lambda: Residual(-1), id="negative strength"),
        pytest.param(lambda: MagnitudeMask(2, kept=2.0), id="more kept than all"),
        pytest.param(lambda: NormLaw(2, 1.0), id="too few channels"),
    ],
)
def test_bad_parameters_are_refused(call: Callable[[], Law]) -> None:
    with pytest.raises(ValueError, match=r"it takes a .*e\.g\."):
        call()


def test_a_mask_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        magnitude_variance(0)


def test_the_base_of_all_laws_is_public() -> None:
    assert laws.Law
