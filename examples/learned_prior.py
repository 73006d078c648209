"""A learned prior: the adversarial critic beside total variation, on a lesion that neither has seen. Needs torch."""

import elastofast as ef

grid = ef.Grid(shape=(96, 96), spacing=(3e-4, 3e-4))
law = ef.PlaneStress(poisson=0.495)
truth, mask = ef.lesion(grid, seed=7, kind="lobulated", size=(0.2, 0.35))
m = ef.simulate(grid, law, ef.compression(grid, pressure=100.0), truth, snr=35.0, seed=0)

results = {prior: ef.reconstruct(m, prior=prior) for prior in ("tv", "critic")}
for prior, result in results.items():
    error = ef.metrics.evaluate(result.modulus, truth, grid, mask=mask)["relative_l2"]
    print(f"{prior:<7} relative error {error:.3f}, chi2 {result.chi2:.2f}")
maps = {"truth": truth, "total variation": results["tv"].modulus, "critic": results["critic"].modulus}
ef.plot_maps(maps, grid, "learned_prior.png")
