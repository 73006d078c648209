import json
import pickle
import struct

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from elastofast.priors import weights_file  # noqa: E402
from elastofast.priors.networks import DnCNN, PaperCritic, UNet  # noqa: E402
from elastofast.priors.standard import Standard  # noqa: E402

CONFIGURATION = {"standard": Standard()._asdict(), "training": {"seed": 3, "note": "µ = 5"}}


def unet():
    torch.manual_seed(0)
    return UNet(channels=4)


@pytest.fixture
def path(tmp_path):
    weights_file.save(tmp_path / "unet.safetensors", unet(), CONFIGURATION)
    return tmp_path / "unet.safetensors"


def rewrite(path, change):
    """Write the file again after ``change(tensors, header)``, by safetensors alone."""
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["elastofast"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    change(tensors, header)
    safetensors.save_file(tensors, path, {"elastofast": json.dumps(header)})


@pytest.mark.parametrize(
    "network",
    [UNet(channels=4), UNet(channels=3, refine=0), DnCNN(4, 3), DnCNN(4, 3).fused(), PaperCritic((16, 24))],
    ids=["unet", "unet, plain", "dncnn", "dncnn, fused", "paper critic"],
)
def test_a_network_comes_back_in_half_precision(tmp_path, network):
    path = tmp_path / "weights.safetensors"
    weights_file.save(path, network, CONFIGURATION)
    again, configuration = weights_file.load(path, expected=network.kind)
    s = torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        assert torch.equal(again(s), network.half().float().eval()(s))
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert configuration["kind"] == network.kind and configuration["architecture"] == network.architecture
    assert {name: configuration[name] for name in CONFIGURATION} == CONFIGURATION


def test_memory_format_does_not_matter(path, tmp_path):
    network = unet().to(memory_format=torch.channels_last)
    weights_file.save(tmp_path / "last.safetensors", network, CONFIGURATION)
    assert (tmp_path / "last.safetensors").read_bytes() == path.read_bytes()


def test_headers_of_any_length_are_told_from_pickles(tmp_path):
    """The first byte of a file is that of its header's length, and 0x80 is also how a pickle begins."""
    first = set()
    for padding in range(0, 256, 8):
        path = tmp_path / f"{padding}.safetensors"
        weights_file.save(path, unet(), {**CONFIGURATION, "padding": "-" * padding})
        weights_file.load(path)
        first.add(path.read_bytes()[0])
    assert 0x80 in first


def test_default_type_does_not_matter(path):
    torch.set_default_dtype(torch.float64)
    try:
        network, _ = weights_file.load(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_network_of_another_kind_than_expected_is_refused(path):
    weights_file.load(path, expected=("dncnn", "unet"))
    with pytest.raises(ValueError, match="expected weights of dncnn or paper-critic, the file holds 'unet'"):
        weights_file.load(path, expected=("dncnn", "paper-critic"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))], ids=["torch", "pickle"])
def test_pickles_are_not_opened(tmp_path, write):
    write({"weights": Bomb(tmp_path / "exploded")}, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="this is a pickle"):
        weights_file.load(tmp_path / "net.safetensors")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"not weights at all, but some text", struct.pack("<Q", 1 << 62) + b"{}", b"\x89HDF\r\n\x1a\n" * 9],
    ids=["empty", "short", "text", "absurd header", "hdf5"],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"expected elastofast weights \(safetensors\), the file starts with"):
        weights_file.load(tmp_path / "file")


def test_files_cut_short_anywhere_are_refused(path):
    whole = path.read_bytes()
    for share in (0.001, 0.01, 0.1, 0.5, 0.9, 0.9999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"cut short|the file starts with"):
            weights_file.load(path)


def test_damaged_header_is_always_a_value_error(path):
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for place in range(0, length, 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            weights_file.load(path)
        except ValueError:
            refused += 1
    assert refused > length / 7 / 4  # the rest is in the free text of the configuration


def test_safetensors_of_others_are_refused(tmp_path):
    safetensors.save_file(unet().state_dict(), tmp_path / "a")
    with pytest.raises(ValueError, match="expected elastofast weights, this safetensors file is not by elastofast"):
        weights_file.load(tmp_path / "a")
    weights_file.write_tensors(tmp_path / "b", "elastofast checkpoint", 1, {}, {})
    with pytest.raises(ValueError, match="expected elastofast weights, this safetensors file is elastofast checkpoint"):
        weights_file.load(tmp_path / "b")


def changed(name, value):
    return lambda tensors, header: header.update({name: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tensors, header: tensors.pop("down.0.0.bias"), "1 tensors are missing, the first is 'down.0.0.bias'"),
        (lambda tensors, header: tensors.update(extra=torch.ones(2)), "not part of unet, the first is 'extra'"),
        (
            lambda tensors, header: tensors.update({"output.bias": torch.ones(2)}),
            r"output.bias must be torch.float32 of shape \(1,\), got torch.float32 of shape \(2,\)",
        ),
        (lambda tensors, header: tensors.update({"output.bias": torch.ones(1).double()}), "got torch.float64"),
        (lambda tensors, header: tensors["output.weight"][0, 0, 0].fill_(torch.nan), "output.weight has values"),
        (lambda tensors, header: tensors["output.bias"].fill_(torch.inf), "output.bias has values"),
        (changed("kind", "transformer"), "expected weights of .*, the file holds 'transformer'"),
        (changed("kind", ["unet"]), "the file holds"),
        (changed("architecture", {"channels": 10**12}), "its architecture is not one of unet: channels"),
        (changed("architecture", {"channels": 1024, "refine": 8}), "missing"),  # not built at that size
        (changed("architecture", {"width": 4}), "its architecture is not one of unet"),
        (changed("architecture", None), "its architecture is not one of unet"),
        (changed("version", 2), "elastofast weights of version 2, this elastofast reads 1"),
    ],
)
def test_what_does_not_fit_the_network_is_named(path, change, text):
    rewrite(path, change)
    with pytest.raises(ValueError, match=text):
        weights_file.load(path)


def test_metadata_that_is_no_json_is_refused(path):
    for text in ("{", "[]", "[" * 100_000):
        safetensors.save_file(unet().state_dict(), path, {"elastofast": text})
        with pytest.raises(ValueError, match=r"damaged|not by elastofast"):
            weights_file.load(path)


def test_a_missing_file_is_an_error_of_its_own(tmp_path):
    with pytest.raises(FileNotFoundError):
        weights_file.load(tmp_path / "none.safetensors")


def test_failed_save_leaves_the_old_file(path):
    before = path.read_bytes()
    network = unet()
    network.output.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"output\.bias has values that are not finite"):
        weights_file.save(path, network, CONFIGURATION)
    with pytest.raises(ValueError, match="JSON"):
        weights_file.save(path, unet(), {"training": {"loss": float("nan")}})
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]
