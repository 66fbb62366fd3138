"""network.py: each block once, nothing over another, and lines along which a MACE hands its results on."""

import itertools

from pages_by_hand import parsed

from precision_probe.report.drawing.network import Node, network

MACE = ["geometry", "node_embedding", "radial_embedding", "spherical_harmonics"]
MACE += [f"{kind}.{layer}" for layer in (0, 1) for kind in ("interactions", "products", "readouts")]
MACE += ["scale_shift", "atomic_energies_fn", "les_readouts", "sums"]
SIZE = (122, 60)


def drawn(names, **more):
    nodes = [Node(name, 1e-7, 2e-7, 0.1, "numbers", **more) for name in names]
    found = parsed(network(nodes, "float32"))
    blocks = [each for each in found.all("g") if each.attributes.get("class") == "node"]
    places = [(float(each.attributes["data-x"]), float(each.attributes["data-y"])) for each in blocks]
    return found, dict(zip([each.attributes["aria-label"].split(";")[0] for each in blocks], places, strict=True))


def check_apart(places):
    for (ax, ay), (bx, by) in itertools.combinations(places.values(), 2):
        assert abs(ax - bx) >= SIZE[0] or abs(ay - by) >= SIZE[1]


def test_of_a_mace_atoms_go_down_and_energies_to_the_right():
    found, places = drawn(MACE)
    assert sorted(places) == sorted(MACE)
    check_apart(places)
    rows = [
        places[name][1] for name in ("node_embedding", "interactions.0", "products.0", "interactions.1", "products.1")
    ]
    assert rows == sorted(rows)
    assert places["readouts.1"][0] > places["products.1"][0] > places["radial_embedding"][0]
    lines = [each for each in found.all("path") if each.attributes["class"] == "arrow"]
    # to spherical harmonics and radial embedding; three into each interaction; two from each product and readout
    assert len(lines) == 2 + 2 * 3 + 2 * 3 + 2


def test_other_modules_follow_one_another():
    found, places = drawn(["b", "a", "<c>"])
    assert list(places) == ["b", "a", "<c>"]
    check_apart(places)
    assert [y for _, y in places.values()] == sorted(y for _, y in places.values())
    assert len(list(found.all("path"))) == 2


def test_what_is_not_finite_or_not_there_has_no_colour():
    nodes = [Node("a", float("nan"), None, None, ""), Node("b", 0.0, float("inf"), float("nan"), "")]
    chips = [each for each in parsed(network(nodes, "float16")).all("rect") if each.attributes["class"] == "chip"]
    assert [each.attributes["fill"] for each in chips] == ["none", "#00224e", "none"]
