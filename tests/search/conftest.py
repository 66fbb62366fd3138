"""What tests of searches share: structures, and times that are made up, and so exact."""

import numpy as np
import pytest
from runs import molecule

from precision_probe.models.blocks import default_blocks
from precision_probe.models.building import build
from precision_probe.search.measuring import CAST, Candidates
from precision_probe.search.recommendation import recommend
from precision_probe.search.timing import Timed

N_ROUNDS = 11  # as many as a search has


@pytest.fixture(scope="session")
def gains():
    """What a block saves of its share of the time, by precision."""
    return {"float64": 0.0, "float32": 0.3, "bfloat16": 0.5, "float16": 0.6}


@pytest.fixture(scope="session")
def tolerance():
    return {"forces": 1e-4, "energy": 5e-5}


@pytest.fixture(scope="session")
def waters():
    """So many molecules, with names: of the first four, what holds on two holds on the other two."""

    def make(n):
        structures = [molecule(8 + number) for number in range(n)]
        for number, atoms in enumerate(structures):
            atoms.info["name"] = f"water {number}"
        return structures

    return make


@pytest.fixture(scope="session")
def one_layer(config):
    """A model that is searched in half the time; tests must not change it."""
    return build(config | {"num_interactions": 1}, seed=3)


@pytest.fixture(scope="session")
def blocks_of():
    """The names of the blocks that a policy can give a precision."""
    return searched_blocks


def searched_blocks(model):
    return [block.name for block in default_blocks(model) if block.name not in ("atomic_energies_fn", "scale_shift")]


@pytest.fixture(scope="session")
def fake_times():
    """Instead of measuring: each block saves its share of the time, by precision; casts, all. Rivals are slow."""

    def fake(gains):
        def timed(self, policies, casts=(), **_):
            blocks = searched_blocks(self.reference.model)
            seconds = {
                name: 1 - np.mean([gains[policy.precision_of(block).name] for block in blocks])
                for name, policy in policies.items()
            }
            seconds |= {CAST.format(name): 1 - gains[name] for name in casts}
            seconds |= dict.fromkeys(self.rivals if casts else (), 10.0)
            return {name: Timed((float(each),) * N_ROUNDS, None) for name, each in seconds.items()}

        return timed

    return fake


@pytest.fixture
def times(monkeypatch, fake_times, gains):
    """Change what blocks save; they save by the gains above unless told."""

    def set_gains(gains):
        monkeypatch.setattr(Candidates, "timed", fake_times(gains))

    set_gains(gains)
    return set_gains


@pytest.fixture(scope="package")
def log(tmp_path_factory):
    """Errors of blocks and proposals, measured once for all searches on the same structures."""
    return tmp_path_factory.mktemp("search") / "policy.json.partial"


@pytest.fixture(scope="package")
def recommended(model, waters, tolerance, gains, fake_times, log):
    """A search as most tests need it: on 2 of 4 structures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Candidates, "timed", fake_times(gains))
        return recommend(model, waters(4), tolerance, device="cpu", log=log, progress=False)
