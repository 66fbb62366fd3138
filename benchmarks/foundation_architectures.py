"""The architectures of the published MACE foundation models, as configurations for ``precision_probe.models.build``.

Built from them, a model has the classes, irreps, sizes and switches of the published one, and random weights. The
weights' own constants are placeholders: atomic energies 0, scale 1, shift 0. What a source does not state is what
``mace_run_train`` does by default (``mace/tools/arg_parser.py`` of mace-torch), or is marked as inferred. An inferred
value may be wrong; ``PUBLISHED_PARAMETERS`` of ``test_foundation_architectures.py`` says which sizes are confirmed.

Training scripts are the first source, with the papers that the models belong to. Where there is no script: what other
projects found in the released files, above all https://github.com/bonan-group/symmetrix-xl at 72f1f33, called
symmetrix-xl below, whose paths are given.
"""

from typing import Any

_COMMON: dict[str, Any] = {
    # ScaleShiftMACE also where the scripts say --model="MACE", of which run_train makes one with shift 0:
    # https://github.com/ACEsuit/mace/blob/main/mace/tools/model_script_utils.py; test_extract_config of mace's own
    # tests asserts it of the released MP-0 and OFF23 models
    "model": "ScaleShiftMACE",
    "num_interactions": 2,
    "max_ell": 3,
    "correlation": 3,
    "radial_type": "bessel",
    "num_polynomial_cutoff": 5,
    "radial_MLP": [64, 64, 64],
    "MLP_irreps": "16x0e",
    "gate": "silu",
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "use_reduced_cg": False,  # run_train's default; with cuEquivariance installed, True would change the sizes
    "atomic_inter_scale": 1.0,
    "atomic_inter_shift": 0.0,
}

# The 89 elements of MPtrj: --atomic_numbers of
# https://github.com/ACEsuit/mace-foundations/blob/main/mace_omat/mace-omat-medium.sh
_MPTRJ_ELEMENTS = [*range(1, 84), *range(89, 95)]

_MATERIALS: dict[str, Any] = _COMMON | {
    "atomic_numbers": _MPTRJ_ELEMENTS,
    "atomic_energies": [0.0] * len(_MPTRJ_ELEMENTS),
    "r_max": 6.0,
    "num_bessel": 10,
    # of the scripts' mptrj-gga-ggapu-statistics.json, as third parties quote it from the MP-0 checkpoints; the density
    # blocks and the non-linear blocks of the later models do not use it
    "avg_num_neighbors": 61.964672446250916,
}

_MP_0 = _MATERIALS | {"interaction_cls_first": "RealAgnosticResidualInteractionBlock"}

# --distance_transform, --pair_repulsion, --interaction_first and --interaction of
# https://github.com/ACEsuit/mace-mp/blob/main/mace_mp_0b3/mace-mp0-b3.sh and of mace-omat-medium.sh
_REPULSIVE = {"distance_transform": "Agnesi", "pair_repulsion": True}
_DENSITY = _REPULSIVE | {
    "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
    "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
}

# The elements, from --E0s of https://github.com/ACEsuit/mace-off/blob/main/mace_off23/medium/train.sh
_OFF23_ELEMENTS = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]

_OFF23: dict[str, Any] = _COMMON | {
    "atomic_numbers": _OFF23_ELEMENTS,
    "atomic_energies": [0.0] * len(_OFF23_ELEMENTS),
    "r_max": 5.0,
    "num_bessel": 8,
    # --model="MACE" of the script; not the residual one: https://github.com/ACEsuit/mace/issues/633
    "interaction_cls_first": "RealAgnosticInteractionBlock",
    # not published: as a third party read it from the medium checkpoint
    "avg_num_neighbors": 18.41771125793457,
}

# As in the checkpoint, from symmetrix-xl's symmetrix/test/test_mh1.py; the rgd1_b3lyp of the model card is not in it
_MH_1_HEADS = ["matpes_r2scan", "mp_pbe_refit_add", "spice_wB97M", "oc20_usemppbe", "omol", "omat_pbe"]

FOUNDATIONS: dict[str, dict[str, Any]] = {
    # https://github.com/ACEsuit/mace-mp/blob/main/mace_mp_0/2023-12-10-mace-128-L0_energy.sh (paper: arXiv:2401.00096)
    "mace-mp-0-small": _MP_0 | {"hidden_irreps": "128x0e"},
    # https://github.com/ACEsuit/mace-mp/blob/main/mace_mp_0/2023-12-03-mace-128-L1.sh
    "mace-mp-0-medium": _MP_0 | {"hidden_irreps": "128x0e + 128x1o"},
    # https://github.com/ACEsuit/mace-mp/blob/main/mace_mp_0/2024-01-07-mace-128-L2.sh, the large model of the
    # repository's README. What mace-torch downloads as "large" is an older one, MACE_MPtrj_2022.9.model: 256x0e +
    # 256x1o with 8 Bessel functions, 15,847,440 parameters
    "mace-mp-0-large": _MP_0 | {"hidden_irreps": "128x0e + 128x1o + 128x2e"},
    # not published, there is no script: inferred from MP-0b3's, mace-mp0-b3.sh above. In symmetrix-xl's
    # symmetrix/test/data/execution_contracts/foundation_model_registry.json the checkpoint's second interaction is the
    # same as MP-0b3's; its published parameter count is that of this architecture, and tells 10 Bessel functions from 8
    "mace-mpa-0-medium": _MATERIALS | _DENSITY | {"hidden_irreps": "128x0e + 128x1o"},
    # https://github.com/ACEsuit/mace-foundations/blob/main/mace_omat/mace-omat-medium.sh; max_ell from symmetrix-xl's
    # benchmarks/omat0_medium_cuda_baseline.md. num_bessel not published (nor is the config-omat.yaml that the script
    # reads): inferred from MPA-0 and MP-0b3, 10; run_train's default would be 8. correlation, MLP_irreps, radial_MLP
    # and num_polynomial_cutoff not published either: inferred from run_train's defaults and those two models
    "mace-omat-0-medium": _MATERIALS | _DENSITY | {"hidden_irreps": "128x0e + 128x1o"},
    # https://github.com/deepmodeling/deepmd-gnn/blob/main/tests/test_mace_off.py, which asserts the checkpoint's values
    # (paper: arXiv:2312.15211). avg_num_neighbors not published: inferred from that of 5 Å, by the sphere's volume
    "mace-off23-small": _OFF23 | {"hidden_irreps": "96x0e", "r_max": 4.5, "avg_num_neighbors": 13.4},
    # https://github.com/ACEsuit/mace-off/blob/main/mace_off23/medium/train.sh
    "mace-off23-medium": _OFF23 | {"hidden_irreps": "128x0e + 128x1o"},
    # channels and degrees of the checkpoint: symmetrix-xl's symmetrix/test/data/execution_contracts/
    # jit_r1_mace_off23_large_contract.json and https://github.com/ACEsuit/mace/issues/1192. There is no script: r_max,
    # avg_num_neighbors and the rest inferred from medium's; the parameter count confirms all that it depends on
    "mace-off23-large": _OFF23 | {"hidden_irreps": "224x0e + 224x1o + 224x2e"},
    # the checkpoint's switches, irreps and correlation: https://github.com/ACEsuit/mace-jax/blob/main/tests/
    # test_import_torch_weights.py, test_build_jax_model_forwards_mh1_specific_config (r_max and num_bessel are not the
    # model's there); channels, Bessel functions, l_max: symmetrix-xl's benchmarks/mh1_generalized_family.md; r_max and
    # ZBL: docs/mh1_staged_direct_implementation_plan.md there (paper: arXiv:2510.25380)
    "mace-mh-1": _MATERIALS
    | _REPULSIVE
    | {
        "interaction_cls_first": "RealAgnosticResidualNonLinearInteractionBlock",
        "interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock",
        "hidden_irreps": "512x0e + 512x1o",
        "edge_irreps": "128x0e + 128x1o",  # build() passes it on as it is, and mace-torch takes no text
        "use_edge_irreps_first": True,
        "use_agnostic_product": True,
        # apply_cutoff and radial_MLP not published: inferred from symmetrix-xl's docs/mh1_factorized_gpu_capacity.md
        # (the cutoff is kept beside the radial values, the last hidden width is 64) and from
        # https://github.com/ACEsuit/mace-foundations/blob/main/mace_omol/mace-omol.sh, whose blocks are the same
        "apply_cutoff": False,
        "heads": _MH_1_HEADS,
        "atomic_energies": [[0.0] * len(_MPTRJ_ELEMENTS)] * len(_MH_1_HEADS),
        "atomic_inter_scale": [1.0] * len(_MH_1_HEADS),
        "atomic_inter_shift": [0.0] * len(_MH_1_HEADS),
    },
}
