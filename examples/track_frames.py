"""From two ultrasound frames to a map: frames are simulated, tracked, and reconstructed with open edges.

With frames of your own, `elastofast.tracking.read_frames` takes the place of the simulation, and `sample_spacing` says
where the samples are.
"""

import numpy as np

import elastofast as ef
from elastofast.tracking import Scanner, simulate_frames

# a body of 24 mm x 24 mm with an inclusion three times as stiff, compressed by 1 %
body = ef.Grid(shape=(97, 97), spacing=(2.5e-4, 2.5e-4))
law = ef.PlaneStress(poisson=0.495)
truth, _ = ef.inclusion(body, (12e-3, 12e-3), 4e-3, modulus=30e3, background=10e3)
u = ef.solve_forward(ef.ElasticForm(body, law), truth, ef.compression(body, strain=0.01))

# frames before and after, with noise and 2 % of new echoes
scanner = Scanner(shape=(1250, 154), pitch=0.157e-3)
before, after = simulate_frames(scanner, (body, u), snr=20.0, decorrelation=0.02)

tracking = ef.track(before, after, scanner.spacing)
print(f"median correlation {np.nanmedian(tracking.correlation):.3f}, {tracking.measured.mean():.0%} of nodes measured")
for name, std in zip(("axial", "lateral"), tracking.displacement_std, strict=True):
    print(f"{name:<8} standard deviation {1e6 * np.median(std):.2f} um")
ef.plot_tracking(tracking, "track_frames_field.png")

m = tracking.measurement(law)
result = ef.reconstruct(m, prior="tv")
print(result.status, result.message)
ef.plot_result(result, m, "track_frames_map.png")

away = np.hypot(*(tracking.grid.points + tracking.origin - 12e-3).T).reshape(tracking.grid.shape)
contrast = result.modulus[away < 3e-3].mean() / result.modulus[(away > 5.5e-3) & (away < 9e-3)].mean()
print(f"contrast {contrast:.2f}, the truth is 3")
