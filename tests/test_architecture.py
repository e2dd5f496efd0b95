"""The house rules that a machine can check, read from the source: where files are, who imports whom, how long they are.

Budgets are for readers: raise one here with a reason rather than crush code to fit it.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pydiff"

if not (ROOT / "csrc").is_dir():
    pytest.skip("the sources are not here, only the installed package", allow_module_level=True)

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(), str(path)) for module, path in FILES.items()}


# ---- one name, twelve places ---------------------------------------------------------------------------------------

# An op with compiled kernels is a file in seven places and is named in five more; csrc/README.md, "Add a kernel", goes
# through them. Tables that gate.py writes are not counted, nor are files of its own that an op is cut into.
PLACES = [
    "pydiff/reference/{}.py", "pydiff/ops/{}.py", "csrc/cpu/{}.cpp", "csrc/cuda/{}.cu", "csrc/cuda/check/{}.cpp",
    "tests/ops/test_{}.py", "benchmarks/bench_{}.py",
]  # fmt: skip
NAMED_IN = [
    "csrc/kernels.h", "csrc/bindings/kernels.cpp", "pydiff/ops/__init__.py", "tests/ops/test_calls.py",
    "tests/native_functions.py",
]  # fmt: skip
NATIVE_OPS = sorted(path.stem for path in (ROOT / "csrc/cuda").glob("*.cu"))
ARRAY_OPS = sorted({path.stem for path in (PACKAGE / "reference").glob("*.py")} - {*NATIVE_OPS})  # no kernels yet


def test_a_new_kernel_is_named_in_at_most_twelve_files():
    assert len(PLACES) + len(NAMED_IN) <= 12
    lines = (ROOT / "csrc/README.md").read_text().partition("## Add a kernel")[2].partition("\n## ")[0]
    for place in (*PLACES, *NAMED_IN):
        assert place.format("<op>") in lines, f"csrc/README.md does not say that {place} is needed"


@pytest.mark.parametrize("op", NATIVE_OPS)
def test_no_other_file_names_a_kernel(op):
    """A list somewhere that every new kernel has to be added to would be a thirteenth place."""
    source = (ROOT / f"csrc/cpu/{op}.cpp").read_text()
    declared = re.findall(r"^void (\w+)\(", (ROOT / "csrc/kernels.h").read_text(), re.MULTILINE)
    names = [name for name in declared if "_" in name and re.search(rf"^void {name}\(", source, re.MULTILINE)]
    allowed = {place.format(op) for place in (*PLACES, *NAMED_IN)}
    found = []
    below = [PACKAGE / f"{name}.py" for name in ("backend", "compiled", "emulator")]
    for path in [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*"), *below, *(PACKAGE / "ops").glob("*.py")]:
        name, own = str(path.relative_to(ROOT)), path.stem.startswith(op + "_")
        if path.suffix in (".txt", ".h", ".cpp", ".cu", ".py") and name not in allowed and not own:
            comment = "#" if path.suffix in (".txt", ".py") else "//"
            text = path.read_text()
            lines = (text.splitlines()[i - 1] for i in code_lines(path)) if path.suffix == ".py" else text.splitlines()
            found += [
                f"{name}: {line}" for line in lines if re.search(rf"\b({'|'.join(names)})\b", line.split(comment)[0])
            ]
    assert found == []


@pytest.mark.parametrize("op", NATIVE_OPS)
def test_an_op_is_a_file_in_every_place(op):
    missing = [place.format(op) for place in PLACES if not (ROOT / place.format(op)).is_file()]
    assert missing == []


@pytest.mark.parametrize("op", ARRAY_OPS)
def test_an_op_without_kernels_is_a_file_in_every_other_place(op):
    places = [place for place in PLACES if place.startswith(("pydiff", "tests"))]
    assert [place.format(op) for place in places if not (ROOT / place.format(op)).is_file()] == []


def test_every_op_that_calls_a_kernel_is_in_the_list():
    calls = {
        m for m, tree in TREES.items() if any(isinstance(n, ast.Name) and n.id == "native" for n in ast.walk(tree))
    }
    assert calls - {"pydiff.backend"} == {f"pydiff.ops.{op}" for op in NATIVE_OPS}
    assert sorted(p.stem for p in (PACKAGE / "reference").glob("*.py")) == sorted(NATIVE_OPS + ARRAY_OPS)


def test_header_and_bindings_name_the_same_functions():
    """Once each, in the same order; what both say about arguments is compared in test_bindings.py."""
    declared = re.findall(r"^void (\w+)\(", (ROOT / "csrc/kernels.h").read_text(), re.MULTILINE)
    bound = re.findall(r'm\.def\("(\w+)", &bind_(\w+)\)', (ROOT / "csrc/bindings/kernels.cpp").read_text())
    assert bound == [(name, name) for name in declared]
    used = {
        node.args[1].value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "native"
    }
    assert used <= set(declared)
    assert set(declared) - used == {"normal"}  # the noise alone, for comparison with other generators


# ---- who imports whom ----------------------------------------------------------------------------------------------


def imports(module):
    """Modules of ours that a module imports, inside functions too; (name, whether at the top of the file)."""
    top = {id(node) for node in TREES[module].body}
    for node in ast.walk(TREES[module]):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            names = [f"{base if node.level else node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in FILES:  # from pydiff.ops import add -> pydiff.ops
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name, id(node) in top


def test_imports_are_found():
    """The reader above sees plain, relative and local imports."""
    assert ("pydiff.ops.elementwise", True) in imports("pydiff.ops.group_norm")
    assert ("pydiff.formats.safetensors", True) in imports("pydiff.store.sealed")
    assert ("pydiff.report", False) in imports("pydiff.run")


# From the bottom up; a module may import what it names here, and modules of its own package. Nothing points back.
MAY_IMPORT = {
    "moved": "",
    "memory": "",
    "compiled": "pydiff",
    "emulator": "pydiff",
    "backend": "compiled emulator",
    "arrays": "backend",
    "random": "",
    "reference": "",
    "signatures": "",
    "printed": "",
    "console": "printed",
    "mistakes": "arrays printed",
    "tensor": "signatures backend arrays mistakes",
    "recompute": "tensor",
    "graph": "arrays tensor",
    "ops": "backend arrays tensor random mistakes printed",
    "nn": "backend arrays tensor random ops recompute mistakes",
    "optim": "backend arrays ops mistakes",
    "models": "backend arrays tensor ops nn mistakes",
    "codec": "arrays mistakes",
    "codecs": "arrays codec",
    "latents": "arrays tensor models codec mistakes",
    "formats.safetensors": "",
    "formats.files": "printed formats.safetensors",
    "formats.pytorch": "formats.safetensors formats.files",
    "formats.schema": "formats.safetensors",
    "store": "backend mistakes formats.safetensors formats.files",
    "text": "arrays printed tensor nn models",
    "text.learned": "arrays tensor nn models text",
    "text.bert": "tensor nn models formats.safetensors formats.files formats.schema text",
    "condition": "arrays text printed mistakes",
    "diffusion.table": "",
    "diffusion.schedule": "diffusion.table",
    "diffusion.continuous": "diffusion.schedule diffusion.table",
    "diffusion": "backend arrays tensor random graph ops codec mistakes",
    "sound": "arrays codec",
    "data": "memory random codec codecs sound condition mistakes printed formats.safetensors formats.pytorch",
    "text.make_glove": "text data",
    "pipeline": "backend codec condition diffusion memory mistakes",
    "stable_diffusion": "memory arrays tensor ops nn models condition diffusion latents pipeline",
    "edit": "backend data diffusion mistakes",
    "likelihood": "arrays backend tensor random diffusion",
    "formats.weights": "formats.safetensors formats.files formats.pytorch",
    "formats.diffusers.scheduler": "codec diffusion mistakes formats.safetensors formats.schema",
    "formats.diffusers.folder": "formats.safetensors formats.files",
    "formats.diffusers.parameters": "backend nn printed formats.safetensors formats.schema",
    "formats.diffusers.own_networks": "formats.safetensors formats.schema",
    "formats.diffusers.autoencoder": "models nn store formats.safetensors formats.files formats.schema formats.weights "
    "formats.diffusers.folder formats.diffusers.parameters",
    "formats.diffusers.unet_condition": "models nn formats.safetensors formats.schema formats.diffusers.parameters",
    "formats.diffusers.unet": "models nn formats.safetensors formats.schema formats.diffusers.parameters "
    "formats.diffusers.own_networks formats.diffusers.unet_condition",
    "formats.diffusers.text_encoder": "models nn text formats.safetensors formats.files formats.schema formats.weights "
    "formats.diffusers.folder formats.diffusers.parameters",
    "text.folder": "models formats.safetensors formats.files formats.schema formats.diffusers.text_encoder store text",
    "formats.embeddings": "printed formats.safetensors formats.files formats.pytorch",
    "formats.ldm": "formats.safetensors",
    "formats.diffusers.extra": "codec condition nn formats.safetensors formats.schema formats.diffusers.scheduler",
    "latent_space": "arrays printed tensor models codec latents store formats.files formats.safetensors "
    "formats.diffusers.autoencoder",
    "formats.diffusers.pipeline": "codec latents condition diffusion models pipeline store formats.safetensors "
    "formats.schema formats.weights "
    "formats.diffusers.folder formats.diffusers.unet formats.diffusers.autoencoder formats.diffusers.parameters "
    "formats.diffusers.scheduler formats.diffusers.extra",
    "formats.diffusers.stable_diffusion": "memory condition nn text latents stable_diffusion formats.safetensors "
    "formats.weights formats.embeddings formats.diffusers.folder formats.diffusers.autoencoder "
    "formats.diffusers.text_encoder formats.diffusers.unet_condition formats.diffusers.pipeline "
    "formats.diffusers.scheduler",
    "formats.diffusers.stable_diffusion_write": "models store text stable_diffusion formats.files formats.safetensors "
    "formats.diffusers.autoencoder formats.diffusers.folder formats.diffusers.parameters",
    "formats.single_file": "printed memory text formats.safetensors formats.files formats.pytorch formats.ldm "
    "formats.diffusers.folder formats.diffusers.autoencoder formats.diffusers.text_encoder "
    "formats.diffusers.unet_condition formats.diffusers.parameters formats.diffusers.pipeline "
    "formats.diffusers.stable_diffusion",
    "formats.opened": "store pipeline stable_diffusion formats.safetensors formats.files formats.single_file "
    "formats.diffusers.pipeline formats.diffusers.stable_diffusion formats.diffusers.stable_diffusion_write",
    "formats": "",
    "training.interrupt": "",
    "training.progress": "",
    "training.rate": "optim",
    "training.precision": "backend tensor",
    "training.changes": "training.rate",
    "training.health": "",
    "training.keeping": "formats.safetensors printed training.health",
    "training.reading": "data",
    "training.config": "data diffusion printed mistakes models store text training.reading",
    "training.networks": "codec models training.config",
    "training.captions": "text data",
    "training.task": (
        "arrays random tensor nn models codec condition diffusion data "
        "training.config training.networks training.captions training.precision"
    ),
    "training.clip_task": "codec data training.task",
    "training.classify": "random tensor models ops condition data diffusion training.config training.task",
    "training.shards": "",
    "training.distributed": "backend store pydiff",
    "training.suited": "store training.distributed",
    "training.sums": "arrays training.shards",
    "training.nccl": "training.distributed training.shards training.sums",
    "training.gradient": "arrays nn ops training.shards training.sums training.nccl training.distributed",
    "training.loop": "backend arrays nn optim store training.interrupt training.progress training.rate "
    "training.changes training.keeping training.distributed training.gradient training.precision",
    "training.autoencoder": "arrays random tensor ops models codec data training.config training.task",
    "training.forecast": "backend memory nn models training.task training.loop",
    "training.inversion": "arrays random ops nn text condition data diffusion training.config training.task",
    "training.segment": "arrays tensor models ops data training.config training.task",
    "training": "",
    "report.looks": "backend arrays ops tensor",
    "report": "arrays random codec codecs sound data formats.files memory pipeline printed store text",
    "report.words": "arrays backend report",
    "drawing": "codecs formats.files memory printed report sound store",
    "preview": "report",
    "trained": "formats.files",
    "trained.make_digits": "trained pydiff",
    "reopen": "printed data pipeline formats store",
    "warm": "models store training reopen printed formats.files",
    "autoencoding": "backend data latent_space formats printed store training report preview reopen",
    "classifying": "backend arrays tensor nn codec condition data formats models ops printed random reopen store "
    "training",
    "steering": "backend arrays tensor ops condition diffusion pipeline",
    "dry_run": "backend memory data latent_space training warm",
    "run": "autoencoding classifying steering latent_space backend condition data pipeline edit formats mistakes store "
    "trained printed training report preview reopen warm",
    "segment": "backend arrays tensor codec data formats models report store training",
    "invert": "printed memory data formats store text training",
    "bench": "",
    "demo": "data report store trained training run printed",
    "info": "backend compiled emulator pydiff",
    "cli": "backend codec data demo diffusion store report drawing dry_run pydiff training run segment invert bench "
    "info text printed console",
    "__main__": "cli",
}


def inside(module, entry):
    """Whether a module, without the leading pydiff., is this entry of the table or belongs to it."""
    return module == entry or module.startswith(entry + ".")


@pytest.mark.parametrize("module", [m.removeprefix("pydiff.") for m in FILES if m != "pydiff"])
def test_imports_point_down(module):
    own = max((entry for entry in MAY_IMPORT if inside(module, entry)), key=len, default=None)
    assert own, f"{module} is in no layer; give it a line in MAY_IMPORT"
    allowed = [own, *MAY_IMPORT[own].split()]
    names = {name.removeprefix("pydiff.") for name, _ in imports(f"pydiff.{module}")}
    wrong = sorted(name for name in names if not any(inside(name, entry) for entry in allowed))
    assert wrong == [], f"{module} may import {', '.join(allowed)}"


def test_the_table_itself_points_down():
    order = list(MAY_IMPORT)
    for entry, allowed in MAY_IMPORT.items():
        for name in allowed.split():
            assert name == "pydiff" or order.index(name) < order.index(entry), (
                f"{entry} may import {name}, which is above it"
            )


def test_the_reference_stands_alone():
    """It imports NumPy, the standard library and itself; only tests and benchmarks import it."""
    for module, tree in TREES.items():
        used = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        used |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        if module.startswith("pydiff.reference"):
            assert {name for name in used if not name.startswith("pydiff.reference.")} <= {"numpy", "math"}
        else:
            assert not any("reference" in str(name) for name in used), module


def test_compiled_modules_are_named_where_they_are_loaded_only():
    for module, path in FILES.items():
        names = set(re.findall(r"\bpydiff\._[a-z]\w*|\bfrom \._\w+|\b_(?:cpu|cuda|simt)\w*\b", path.read_text()))
        assert module in {f"pydiff.{name}" for name in ("backend", "compiled", "emulator", "info")} or not names, (
            f"{module} names {names}"
        )


# ---- budgets -------------------------------------------------------------------------------------------------------

# What a reader of one sitting reads, floor by floor: explicit lists, and how many lines of code each may have. Breadth
# (more operations, samplers, formats, evaluation) lives beside these floors, not in them.
BESIDE = {"dropout", "gelu", "layer_norm"}  # off by default, or what transformers need; they have kernels, too
SPINE_OPS = [
    f"ops/{name}.py" for name in ("__init__", "elementwise", "shape", "reduction", *sorted({*NATIVE_OPS} - BESIDE))
]
FLOORS = {
    # 20 of it to tell type checkers what a Tensor and a Function are, 10 for gradients wider than what they are of, 20
    # for small arrays that are moved to a GPU once, 10 for gradients that were replaced by something else,
    # 20 for the larger and the smaller of two
    "maths": (["backend.py", "arrays.py", "tensor.py", "recompute.py", "random.py", *SPINE_OPS], 1545),
    "network": (
        [
            "nn/module.py", "nn/layers.py", "nn/attention.py", "optim.py", "models/registry.py", "models/blocks.py",
            "models/unet.py",
        ],
        # 10 of it for types, 5 for networks and parts of pipelines told apart, and blocks that are told nothing, 5 for
        # the bfloat16 copy of the weights in optim.py, 40 for optimisers that are copied with their model, for
        # parameters that are frozen or replaced, and for sizes that are none, 20 for networks of unknown origin, which
        # take no more numbers than their weights have, 5 for weights that are none, 5 for words of other libraries and
        # lists in the place of arrays
        730,
    ),
    "process": (
        [
            "condition.py", "codec.py", "diffusion/table.py", "diffusion/schedule.py", "diffusion/path.py",
            "diffusion/prediction.py", "diffusion/process.py", "diffusion/samplers/plain.py",
            "diffusion/samplers/walk.py", "diffusion/samplers/ancestral.py",
        ],
        # 40 of it for prompts and their arithmetic in condition.py, 35 for classes by name, numbers among them, 10 for
        # codecs that have networks and encode a data set once, 10 for images that are given, 10 for options that are
        # no numbers, 1 for warnings that name the line to be changed
        921,
    ),
    # 40 of it for prompts, and for the schedulers that models bring; 20 for a text encoder trained along and several
    # processes; 30 for runs that are gone on with and come back to; 5 for models that have ways of their own; 20 for
    # classifiers and what they steer; 15 for training in bfloat16; 3 for corners of a batch, which foretell a step; 2
    # for options that suit the data; 15 for numbers of samples that are none, or too many, and for misspelt options
    "loop": (["training/loop.py", "training/task.py", "pipeline.py", "run.py"], 725),
}  # fmt: skip
# run.py is the longest: every argument of sampling and training is documented there.
FILE_LINES, FUNCTION_LINES = 400, 45
# Longer than that, each for a reason.
LONG_FUNCTIONS = {
    "_run_backward": "the chain rule in one loop, and when the gradient of each leaf is final",
    "train": "the keywords of the front door, documented here once",
    "walk": "the keywords of every sampler, documented here once, and the one loop",
    "UNet2D.__init__": "30 options, one a line, and then the network in the order of the data's flow",
}


def spine():
    return [path for patterns, _ in FLOORS.values() for pattern in patterns for path in sorted(PACKAGE.glob(pattern))]


def code_lines(path):
    """Numbers of the lines that hold code: no blank lines, comments or docstrings."""
    source = path.read_text()
    tree, lines = ast.parse(source), source.splitlines()
    code = {i for i, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= set(range(node.lineno, node.end_lineno + 1))
    return code


def lines_of_code(path):
    return len(code_lines(path))


def test_files_of_the_spine_are_short():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in spine()}
    too_long = {name: n for name, n in lengths.items() if n > FILE_LINES}
    assert too_long == {}, f"more than {FILE_LINES} lines: {too_long}"


def test_functions_of_the_spine_are_short():
    too_long = {}
    for path in spine():
        tree = ast.parse(path.read_text())
        for owner in (tree, *(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef))):
            for node in owner.body:
                if isinstance(node, ast.FunctionDef):
                    name = node.name if owner is tree else f"{owner.name}.{node.name}"
                    length = node.end_lineno - node.lineno + 1
                    if length > FUNCTION_LINES and name not in LONG_FUNCTIONS:
                        too_long[f"{path.relative_to(ROOT)} {name}"] = length
    assert too_long == {}, f"more than {FUNCTION_LINES} lines: {too_long}"


@pytest.mark.parametrize("floor", FLOORS)
def test_every_floor_is_short(floor):
    patterns, allowed = FLOORS[floor]
    paths = [path for pattern in patterns for path in PACKAGE.glob(pattern)]
    assert all(any(PACKAGE.glob(pattern)) for pattern in patterns)
    lengths = {str(path.relative_to(PACKAGE)): lines_of_code(path) for path in paths}
    total = sum(lengths.values())
    assert total <= allowed, f"the floor has {total} lines of code, allowed {allowed}: {lengths}"


def test_a_run_is_a_facade():
    """It holds a pipeline and a folder, and hands on; what it can do is done below, where nobody knows a run."""
    (run,) = (n for n in TREES["pydiff.run"].body if isinstance(n, ast.ClassDef) and n.name == "Run")
    assert run.end_lineno - run.lineno < 235
    for module, tree in TREES.items():
        if module in ("pydiff.run", "pydiff.cli", "pydiff"):
            continue
        named = [n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)] + [
            n.id for n in ast.walk(tree) if isinstance(n, ast.Name)
        ]
        assert not {"run", "Run"} & set(named), f"{module} knows a run"


# ---- who knows what ------------------------------------------------------------------------------------------------


def lines_that_name(pattern, allowed):
    """Lines of code, without comments and docstrings, that match, outside of the `allowed` files and folders."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        if not name.startswith(allowed):
            text = path.read_text().splitlines()
            found += [f"{name}:{i}" for i in sorted(code_lines(path)) if re.search(pattern, text[i - 1])]
    return found


def test_labels_are_known_at_the_door_and_in_the_data_only():
    """Everybody else hands on a Condition. The others' labels are those of a loss, a table,
    a network's own argument, an axis and a form."""
    others = ("ops/reduction.py", "nn", "models/", "report/loss.py", "report/sections.py", "report/autoencoder.py",
              "mistakes.py")  # fmt: skip
    assert len(lines_that_name(r"\blabels\b", ("data/", "condition.py", *others))) <= 12


def test_only_the_codec_and_the_data_know_what_a_pixel_is():
    codecs = ("data/", "codec.py", "latents.py", "codecs/", "sound/", "segment.py", "latent_space.py", "mistakes.py")
    assert lines_that_name(r"\bto_uint8\b|\bfrom_uint8\b|\(-1(\.0)?, 1(\.0)?\)", codecs) == [
        *lines_that_name(r'"flow": lambda', ("data/",))  # v = x0 - eps happens to have these coefficients
    ]


# ---- habits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", FILES)
def test_nothing_can_run_code_from_a_file(module):
    """No pickle and nothing made of it; no eval of text."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            parts = {part for name in names for part in name.split(".")}
            assert not parts & {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, (
                module
            )
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else "an expression"
                assert keyword.arg != "allow_pickle" or value is False, f"{module}:{node.lineno}"
            assert not (isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")), f"{module}:{node.lineno}"


def bases(node):
    return {base.id if isinstance(base, ast.Name) else getattr(base, "attr", "") for base in node.bases}


@pytest.mark.parametrize("module", FILES)
def test_everything_public_says_what_it_is(module):
    """Files, functions, classes and methods; what an op, a layer or a command does is said by its class."""
    silent = [] if ast.get_docstring(TREES[module]) else ["the file"]
    for node in TREES[module].body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node) and not (isinstance(node, ast.ClassDef) and "Function" in bases(node)):
            silent.append(node.name)
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            plain = isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
            if plain and method.name not in ("forward", "backward", "apply", "run") and not ast.get_docstring(method):
                silent.append(f"{node.name}.{method.name}")
    assert silent == [], f"{module}: no docstring"


def test_every_public_name_exists_and_is_listed_once():
    tree = TREES["pydiff"]
    listed = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    )
    every = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module.startswith("pydiff")]
    imported = [alias.asname or alias.name for n in every for alias in n.names]
    assert sorted(listed) == sorted(set(imported) - {"moved"})  # which is no name of the public's
    import pydiff

    for name in listed:
        assert getattr(pydiff, name) is not None
