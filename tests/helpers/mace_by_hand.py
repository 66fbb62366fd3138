"""A ScaleShiftMACE run block by block with mace-torch alone: nothing of precision_probe is used here.

It follows the model's forward pass by calling its submodules, so that the inputs and outputs of each block, and the
gradients of the energy with respect to each block's own inputs, can be compared with what the package captured.

Run as a script it prints the relative errors of each block:

    python tests/helpers/mace_by_hand.py MODEL STRUCTURES float32
"""

import copy
import sys
import warnings

import ase.io
import mace.data
import mace.tools
import numpy as np
import torch
from mace.tools.torch_geometric import Batch

INPUTS = {  # of each family: the positions, in the call, of what is differentiated
    "node_embedding": {"node_attrs": 0},
    "radial_embedding": {"edge_lengths": 0},
    "spherical_harmonics": {"vectors": 0},
    "interactions": {"node_feats": 1, "edge_attrs": 2, "edge_feats": 3},
    "products": {"node_feats": 0, "skip": 1},
    "readouts": {"node_feats": 0},
}
OUTPUTS = {
    "radial_embedding": ("edge_feats",),
    "spherical_harmonics": ("edge_attrs",),
    "interactions": ("message", "skip"),
}


def graph(atoms, model):
    """MACE's float64 input for one structure."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        entry = mace.data.AtomicData.from_config(
            mace.data.config_from_atoms(atoms),
            z_table=mace.tools.AtomicNumberTable([int(z) for z in model.atomic_numbers]),
            cutoff=float(model.r_max),
        )
        return Batch.from_data_list([entry]).to_dict()
    finally:
        torch.set_default_dtype(before)


def family(name):
    return name.split(".")[0]


def outputs_of(name, returned):
    tensors = returned if isinstance(returned, tuple) else (returned,)
    names = OUTPUTS.get(family(name), ("output",))
    return {label: tensor for label, tensor in zip(names, tensors, strict=False) if tensor is not None}


class Tape:
    """Calls blocks on leaves of their own, and remembers what went in and what came out."""

    def __init__(self, model):
        self.model, self.arguments, self.leaves, self.outputs = model, {}, {}, {}

    def __call__(self, name, *args):
        args = list(args)
        for label, position in INPUTS[family(name)].items():
            if args[position].requires_grad:
                args[position] = args[position] * 1.0  # the same numbers, another node of the graph
            else:
                args[position] = args[position].clone().requires_grad_()
            self.leaves[name, label] = args[position]
        self.arguments[name] = args
        returned = self.model.get_submodule(name)(*args)
        self.outputs |= {(name, label): tensor for label, tensor in outputs_of(name, returned).items()}
        return returned


def propagated(model, data, dtype):
    """Outputs of every block and gradients of the energy with respect to its inputs, the whole model in one dtype."""
    model = copy.deepcopy(model).to(dtype)
    data = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in data.items()}
    positions = data["positions"].clone().requires_grad_()
    sender, receiver = data["edge_index"]
    vectors = positions[receiver] - positions[sender] + data["shifts"]
    lengths = torch.linalg.norm(vectors, dim=-1, keepdim=True)
    call = Tape(model)
    node_feats = call("node_embedding", data["node_attrs"])
    edge_attrs = call("spherical_harmonics", vectors)
    edge_feats, _ = call("radial_embedding", lengths, data["node_attrs"], data["edge_index"], model.atomic_numbers)
    node_energies = []
    for i in range(len(model.interactions)):
        message, skip = call(
            f"interactions.{i}", data["node_attrs"], node_feats, edge_attrs, edge_feats, data["edge_index"]
        )
        node_feats = call(f"products.{i}", message, skip, data["node_attrs"])
        node_energies.append(call(f"readouts.{i}", node_feats, None).squeeze(-1))
    heads = torch.zeros_like(data["batch"])
    energy = model.scale_shift(torch.stack(node_energies).sum(dim=0), heads).sum()
    keys = list(call.leaves)
    grads = torch.autograd.grad(energy, [positions, *call.leaves.values()])
    gradients = dict(zip(keys, grads[1:], strict=True))
    return call.outputs, gradients, energy, -grads[0], call.arguments


def isolated(model, arguments, dtype):
    """Outputs of every block alone on given inputs, cast, and gradients of the sum of its squared outputs."""
    outputs, gradients = {}, {}
    for name, args in arguments.items():
        block = copy.deepcopy(model.get_submodule(name)).to(dtype)
        args = [a.detach().clone().to(dtype) if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
        leaves = {label: args[position].requires_grad_() for label, position in INPUTS[family(name)].items()}
        found = outputs_of(name, block(*args))
        grads = torch.autograd.grad(sum((tensor**2).sum() for tensor in found.values()), list(leaves.values()))
        outputs |= {(name, label): tensor for label, tensor in found.items()}
        gradients |= {(name, label): grad for label, grad in zip(leaves, grads, strict=True)}
    return outputs, gradients


def relative_errors(model, structures, dtype):
    """‖ŷ − y‖ / ‖y‖ over all structures: {(mode, block, tensor, is_gradient): value}."""
    pairs = {}
    for atoms in structures:
        data = graph(atoms, model)
        *reference, _, _, arguments = propagated(model, data, torch.float64)
        variant = propagated(model, data, dtype)[:2]
        alone = isolated(model, arguments, torch.float64), isolated(model, arguments, dtype)
        for mode, (y, y_hat) in {"propagated": (reference, variant), "isolated": alone}.items():
            for is_gradient in (False, True):
                for key, tensor in y[is_gradient].items():
                    pair = tensor.detach().double().numpy(), y_hat[is_gradient][key].detach().double().numpy()
                    pairs.setdefault((mode, *key, is_gradient), []).append(pair)
    found = {}
    for key, parts in pairs.items():
        y, y_hat = (np.concatenate([part[side].ravel() for part in parts]) for side in (0, 1))
        found[key] = float(np.linalg.norm(y_hat - y) / np.linalg.norm(y))
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    loaded = torch.load(sys.argv[1], weights_only=False, map_location="cpu")
    for key, value in relative_errors(loaded, ase.io.read(sys.argv[2], ":4"), getattr(torch, sys.argv[3])).items():
        print(*key, f"{value:.4e}")
