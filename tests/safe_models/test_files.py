"""files.py: a file in the safe format that is damaged, or made to do harm, is refused, and none of it is run."""

import json
import os
import pickle
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from precision_probe.exceptions import InputError
from precision_probe.models.attributes import weights_sha256
from precision_probe.models.loading import load_model


def slow(*values):
    """A case for which a model is built."""
    return pytest.param(*values, marks=pytest.mark.slow)


def refusal(path, words=""):
    """One paragraph that names the file and says what to do."""
    with pytest.raises(InputError, match=words) as caught:
        load_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "convert" in message
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_a_pickle_by_this_name_is_not_loaded(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = tmp_path / "it.safetensors"
    path.write_bytes(pickle.dumps(Harm()))
    refusal(path, "no whole safetensors file")
    torch.save(Harm(), path)
    refusal(path, "no whole safetensors file")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file(safe_file, share):
    whole = safe_file.read_bytes()
    safe_file.write_bytes(whole[: int(share * len(whole))])
    refusal(safe_file, "no whole safetensors file")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_another_length(safe_file, length):
    safe_file.write_bytes(struct.pack("<Q", length) + safe_file.read_bytes()[8:])
    refusal(safe_file, "no whole safetensors file")


def test_tensors_beyond_the_file(safe_file):
    whole = safe_file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    name = max((each for each in header if each != "__metadata__"), key=lambda each: header[each]["data_offsets"][1])
    header[name] = header[name] | {"shape": [2**40], "data_offsets": [header[name]["data_offsets"][0], 2**43]}
    text = json.dumps(header).encode()
    safe_file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    refusal(safe_file, "no whole safetensors file")


def test_no_architecture(safe_file):
    save_file(load_file(safe_file), safe_file)
    refusal(safe_file, "tensors alone")


def flip(state):
    bits = state["readouts.0.linear.weight"].view(torch.int64)
    bits[0] ^= 1


def wider(state):
    state["readouts.0.linear.weight"] = torch.zeros(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        slow(wider, r"readouts\.0\.linear\.weight of the shape \(5,\) and not \(4,\)"),
        (lambda state: state.pop("readouts.0.linear.weight"), r"lacks readouts\.0\.linear\.weight"),
        slow(lambda state: state.update(more=torch.ones(1)), "has more, which the model lacks"),
        slow(
            lambda state: state.update({"readouts.0.linear.weight": torch.ones(4, dtype=torch.int64)}), "is torch.int64"
        ),
        (lambda state: state.clear(), "interactions"),
    ],
    ids=["shape", "missing", "extra", "kind", "none"],
)
def test_other_tensors(safe_file, rewrite, change, words):
    rewrite(safe_file, tensors=change)
    refusal(safe_file, words)


def test_a_bit_of_a_tensor(safe_file, rewrite):
    rewrite(safe_file, tensors=flip, tensors_fit=False)
    refusal(safe_file, "damaged: its tensors have another SHA-256")


def test_a_digit_of_the_architecture(safe_file):
    whole = safe_file.read_bytes()
    assert whole.count(b'avg_num_neighbors\\": 5.0') == 1
    safe_file.write_bytes(whole.replace(b'avg_num_neighbors\\": 5.0', b'avg_num_neighbors\\": 5.1'))
    refusal(safe_file, "damaged: its description has another SHA-256")


DEEP: list = []
for _ in range(100):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("place", "name", "value", "words"),
    [
        ((), "schema_version", 2, "schema version 2"),
        ((), "sha256", "00", "sha256"),
        ((), "more", 1, "'more'"),
        ((), "frozen", "all", "frozen"),
        ((), "policy", {"rules": []}, "policy"),
        ((), "interface", "float64", "policy or an interface"),
        ((), "absent", ["nothing.there"], "nothing.there"),
        ((), "adapters", {"rank": 10**9, "alpha": 1.0}, "rank"),
        (("architecture",), "model", "os.system", "os.system"),
        (("architecture",), "interaction_cls", "eval", "eval"),
        (("architecture",), "r_max", "3", "r_max"),
        (("architecture",), "r_max", 10**400, "r_max"),
        (("architecture",), "gate", "exec", "exec"),
        (("architecture",), "num_interactions", 10**9, "num_interactions"),
        (("architecture",), "num_interactions", 64, "64 interactions"),
        (("architecture",), "hidden_irreps", "1000000000x0e", "hidden_irreps"),
        (("architecture",), "hidden_irreps", "10000x0e", "hidden_irreps"),
        (("architecture",), "hidden_irreps", "__import__('os')", "hidden_irreps"),
        (("architecture",), "max_ell", 1000, "max_ell"),
        (("architecture",), "correlation", 8, "correlation"),
        (("architecture",), "num_bessel", 10_000, "num_bessel"),
        (("architecture",), "radial_MLP", [10_000, 10_000], "radial_MLP"),
        (("architecture",), "atomic_numbers", [], "atomic_numbers"),
        (("architecture",), "atomic_numbers", [1, 6, 900], "atomic_numbers"),
        (("architecture",), "embedding_specs", DEEP, "architecture"),
        (("architecture",), "cueq_config", {}, "cueq_config"),
        (("attributes",), "interactions.0.forward", 1, "none that can be set"),
        slow(("attributes",), "interactions.0.__class__", "os", "none that can be set"),
        slow(("attributes",), "interactions.0.conv_tp", 1, "take the place"),
        slow(("attributes",), "readouts.0.linear.weight", 1.0, "take the place"),
        slow(("attributes",), "nowhere.at_all", 1, "part that the model does not have"),
    ],
)
def test_other_values(safe_file, rewrite, place, name, value, words):
    def say(content):
        for key in place:
            content = content[key]
        content[name] = value

    rewrite(safe_file, say=say)
    refusal(safe_file, words)


@pytest.mark.parametrize("name", ["architecture", "attributes", "sha256", "frozen"])
def test_missing_values(safe_file, rewrite, name):
    rewrite(safe_file, say=lambda content: content.pop(name))
    refusal(safe_file, f"lacks {name}")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"schema_version": 1, "architecture": {"r_max": NaN}}']
)
def test_what_is_no_description(safe_file, with_text, text):
    save_file(load_file(safe_file), safe_file, metadata=with_text(text))
    refusal(safe_file, "description")


@pytest.mark.parametrize("n", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_bits_flipped_anywhere(written, tmp_path, n, one_layer):
    """Each is refused; unless what it changed is neither tensor nor architecture, as the name of a format is."""
    chance = random.Random(n)
    whole, path = written.read_bytes(), tmp_path / "flipped.safetensors"
    for _ in range(n):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            loaded, _ = load_model(path)
        except InputError:
            continue
        assert weights_sha256(loaded) == weights_sha256(one_layer)
