"""Which exhibits are there? Names only: an experiment is imported when run, a drawing when drawn.

An experiment module has
    grid(preset, **options) -> list[Config]   frozen dataclasses of JSON types: all that decides the outcome
    measure(config) -> dict                   pure, one unit of work, of JSON types
    summarise(configs, records) -> Result     records in the order of the grid; the command line fills in the
                                              names of exhibit and preset, and the provenance
    joined(result, committed) -> Result       optional: the result of a run together with what the committed result, or
                                              None, has of models that this run lacks
where `grid` names as keywords the options of the command line that it understands (model, text, device,
seeds, first_seed, tasks, hardware, calibration) and is given those that the user gave; of hardware, the fields of
theory.hardware.Hardware. The seeds of a unit are fields `seed` or `seeds` of its config, whose property `hardware`, if
it has one, is all hardware that the unit is on. What is judged, and how, stands in rules/EXHIBIT.md [figures.rules]. A
drawing module has
    draw(result) -> matplotlib Figure         from the result alone, drawings.style.WIDTH inches wide
    CAPTION                                   what is seen, in words; the first sentence stands in for the picture
    PARTS                                     optional: {part: (draw, caption)}, further pictures EXHIBIT-PART.png; draw
                                              may return None for a result that has nothing of the part
    table(result) -> list[dict]               optional: the rows of the CSV (else the findings)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from theory.errors import InputError
from theory.evidence import Result

OPTIONS_OF_ONE = (
    "model",
    "text",
    "seeds",
    "tasks",
    "hardware",
    "calibration",
)  # they mean something else to each exhibit
NUMBERS_OPTIONS = (*OPTIONS_OF_ONE, "first_seed")  # they change the numbers, and so the names of files
EXPERIMENT_OPTIONS = (*NUMBERS_OPTIONS, "device")
PRESETS = ("quick", "default", "full")
DECIDES_NOTHING = "quick preset: decides nothing"  # stands wherever a result of that preset is shown
NO_RESULT = "no result yet"  # stands wherever an exhibit is shown that was not run in full
DATA: Traversable = files("figures") / "data"


@dataclass(frozen=True)
class Exhibit:
    """An exhibit of the command line.

    name: "figure-3" for `--figure 3`.
    title: what the exhibit shows, in one sentence.
    layer: package whose `experiments` hold it, "synthetic" or "realmodels".
    times: how long each preset takes.
    like: the exhibit that this one does with other `defaults`; both share experiment and drawing.
    defaults: options passed to `grid` unless the user overrides them.
    repeats: the exhibit whose findings these are, on the same text, measured by other means.
    needs: a model that is not shipped; `make NEEDS` makes it, with a GPU. `--all` leaves the exhibit out without it.
    """

    name: str
    title: str
    layer: str
    times: Mapping[str, str]
    like: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    repeats: str = ""
    needs: str = ""

    def __post_init__(self) -> None:
        if self.name.partition("-")[0] not in ("figure", "table") or not self.name.partition("-")[2]:
            raise InputError(f"exhibit.name is {self.name!r}: give figure-NAME or table-NAME")
        if set(self.times) != set(PRESETS):
            raise InputError(f"exhibit.times of {self.name}: give a time for each of {', '.join(PRESETS)}")

    @property
    def module(self) -> str:
        """Name that experiment and drawing share: `figure_3` of figure-3, `growth` of figure-growth."""
        kind, _, name = (self.like or self.name).partition("-")
        return (f"{kind}_{name}" if name.isdigit() else name).replace("-", "_")

    @property
    def experiment(self) -> str:
        """Module with `grid`, `measure` and `summarise`."""
        return f"{self.layer}.experiments.{self.module}"

    @property
    def drawing(self) -> str:
        """Module with `draw`."""
        return f"figures.drawings.{self.module}"

    @property
    def sentence(self) -> str:
        """The title, with a full stop if it is no question."""
        return self.title if self.title.endswith("?") else f"{self.title}."

    @property
    def repetition(self) -> str:
        """What to think of findings that are another exhibit's."""
        return (
            f"This is one finding repeated: the findings are those of {self.repeats}, on the same text. They say that"
            " simulators agree, and are no further evidence for the claims."
        )

    @property
    def option(self) -> str:
        """How the command line asks for it."""
        return "--{} {}".format(*self.name.split("-", 1))


# Seeds below this one had been seen when rules/figure-3.md and rules/figure-4.md were written anew, for hermes, too.
UNSEEN: dict[str, Any] = {"first_seed": 2000}
# And those below this one when rules/figure-rivals.md was.
STILL_UNSEEN: dict[str, Any] = {"first_seed": 3100}
# And those below this one when rules/figure-scale.md was.
UNSEEN_SO_FAR: dict[str, Any] = {"first_seed": 4000}
EXHIBITS = (
    Exhibit(
        name="figure-3",
        title="tiny-olmoe on analog hardware: do dense modules hurt more than experts, in all and per parameter?",
        layer="realmodels",
        times={"quick": "1 min on 2 cores", "default": "3 min on 2 cores", "full": "1 min on an H200"},
        defaults=UNSEEN,
    ),
    Exhibit(
        name="figure-4",
        title="tiny-olmoe: which experts to keep digital, by MaxNNScore, the baselines, or its reverse",
        layer="realmodels",
        times={"quick": "1 min on 2 cores", "default": "3 min on 2 cores", "full": "5 min on an H200"},
        defaults=UNSEEN,
    ),
    Exhibit(
        name="figure-5",
        title="tiny-deepseek-moe: which experts to keep digital, by MaxNNScore, the baselines, or its reverse",
        layer="realmodels",
        times={"quick": "1 min on 2 cores", "default": "3 min on 2 cores", "full": "5 min on an H200"},
        like="figure-4",
        defaults=UNSEEN | {"model": "tiny-deepseek-moe"},
    ),
    Exhibit(
        name="figure-6",
        title="Do experts with high MaxNNScores serve frequent tokens? tiny-olmoe and tiny-deepseek-moe by layer",
        layer="realmodels",
        times={"quick": "10 s on 2 cores", "default": "20 s on 2 cores", "full": "1 min on 2 cores"},
    ),
    Exhibit(
        name="table-1",
        title="Converters only: what DACs and ADCs of 8, 6 and 4 bits cost, and whether calibration finds the optimum",
        layer="realmodels",
        times={
            "quick": "2 min on 2 cores (an estimate)",
            "default": "5 min on 2 cores (an estimate)",
            "full": "15 min on 2 busy cores",
        },
    ),
    Exhibit(
        name="table-2",
        title="Throughput and energy of placements by a cost model, and their quality on tiny-olmoe",
        layer="realmodels",
        times={"quick": "1 min on 2 cores", "default": "1 min on 2 cores", "full": "8 min on 2 cores"},
        defaults=UNSEEN,
    ),
    Exhibit(
        name="figure-smol-moe",
        title="smol-moe, made of a pretrained model, on the paper's tasks: what noise takes, and who gives it back",
        layer="realmodels",
        times={
            "quick": "15 min on 2 cores (an estimate)",
            "default": "5 min on an H200 (an estimate)",
            "full": "12 min on two H200s",
        },
        defaults=UNSEEN,
        needs="smol-moe",
    ),
    *(
        Exhibit(
            name=f"{like}-smol-moe",
            title=f"{title} smol-moe, made of a pretrained model",
            layer="realmodels",
            times=dict.fromkeys(PRESETS, "some minutes on an H200 (an estimate)")
            | ({"full": full} if full else {}),
            like=like,
            defaults=defaults | {"model": "smol-moe"},
            needs="smol-moe",
        )
        for like, title, defaults, full in (
            (
                "figure-3",
                "Dense modules against experts on analog hardware, in all and per parameter:",
                UNSEEN,
                "11 min on two busy H200s",
            ),
            (
                "figure-4",
                "Which experts to keep digital, by MaxNNScore, the baselines, or its reverse:",
                UNSEEN | {"large": True},
                "5 min on an H200",
            ),
            (
                "figure-6",
                "Do experts with high MaxNNScores serve frequent tokens?",
                {},
                "2 min on a busy H200",
            ),
            ("table-1", "Converters only, of 8, 6 and 4 bits:", {}, "4 min on a busy H200"),
            (
                "table-2",
                "Throughput and energy of placements by a cost model, and their quality:",
                UNSEEN,
                "2 min on two H200s",
            ),
            (
                "figure-better-score",
                "Scores that theory derives, against MaxNNScore and the best placement found:",
                UNSEEN | {"large": True},
                "7 min on a busy H200",
            ),
            (
                "figure-rivals",
                "MaxNNScore and the expected damage against four scores of others:",
                UNSEEN,
                "4 min on a busy H200",
            ),
        )
    ),
    Exhibit(
        name="figure-4-coactivation",
        title="Which experts to keep digital, where an expert's neurons are active together: smol-moe-coactivation",
        layer="realmodels",
        times=dict.fromkeys(PRESETS, "2 min on an H200"),
        like="figure-4",
        defaults=UNSEEN | {"large": True, "model": "smol-moe-coactivation"},
        needs="smol-moe-coactivation",
    ),
    Exhibit(
        name="figure-tasks",
        title="tiny-olmoe on a multiple-choice task: what noise takes, and what digital experts give back",
        layer="realmodels",
        times={"quick": "1 min on 2 cores", "default": "3 min on 2 cores", "full": "2 min on a busy H200"},
        defaults=UNSEEN,
    ),
    Exhibit(
        name="figure-peers",
        title="Figure 3 (tiny-olmoe) on IBM's simulators: the same weights on ours, aihwkit and aihwkit-lightning",
        layer="realmodels",
        times={"quick": "30 s on 2 cores", "default": "2 min on 2 cores", "full": "19 min on 2 cores"},
        repeats="figure-3",
    ),
    Exhibit(
        name="figure-better-score",
        title="tiny-olmoe: scores that theory derives, against MaxNNScore and the best placement known",
        layer="realmodels",
        times={"quick": "1 min on 2 cores", "default": "4 min on 2 cores", "full": "5 min on an H200"},
    ),
    Exhibit(
        name="figure-better-score-deepseek",
        title="tiny-deepseek-moe: scores that theory derives, against MaxNNScore and the best placement known",
        layer="realmodels",
        times={"quick": "1 min on 2 cores", "default": "4 min on 2 cores", "full": "11 min on an H100"},
        like="figure-better-score",
        defaults={"model": "tiny-deepseek-moe"},
    ),
    Exhibit(
        name="figure-rivals",
        title="tiny-olmoe: MaxNNScore and the expected damage against four scores for quantisation and pruning",
        layer="realmodels",
        times={
            "quick": "1 min on 2 cores",
            "default": "2 min on 2 cores",
            "full": "17 min on 2 busy cores",
        },
        defaults=STILL_UNSEEN,
    ),
    Exhibit(
        name="figure-rivals-deepseek",
        title="tiny-deepseek-moe: MaxNNScore and the expected damage against four scores for quantisation and pruning",
        layer="realmodels",
        times={
            "quick": "1 min on 2 cores",
            "default": "2 min on 2 cores",
            "full": "6 min on 2 cores",
        },
        like="figure-rivals",
        defaults=STILL_UNSEEN | {"model": "tiny-deepseek-moe"},
    ),
    Exhibit(
        name="figure-scale",
        title="A ladder of models: what changes with size and length of training, and which predictions held?",
        layer="realmodels",
        times={
            "quick": "2 min on 2 cores",
            "default": "3 min on 2 cores",
            "full": "1 min for 5 models of 5M on two H200s",
        },
        defaults=UNSEEN_SO_FAR,
    ),
    Exhibit(
        name="figure-growth",
        title="Growth of specialists' neurons: the ratio of frequencies until the knee, and what separates the norms",
        layer="synthetic",
        times={"quick": "15 s on 2 cores", "default": "2 min on 2 cores", "full": "6 min on 2 cores"},
    ),
    Exhibit(
        name="figure-tolerance",
        title="Tolerable noise against the rarity of a class, all analog and with the frequent experts digital",
        layer="synthetic",
        times={"quick": "15 s on 2 cores", "default": "2 min on 2 cores", "full": "7 min on 2 cores"},
    ),
    Exhibit(
        name="figure-bounds",
        title="Bounds on tolerable noise: are they ever violated, and how tight are they?",
        layer="synthetic",
        times={"quick": "15 s on 2 cores", "default": "2 min on 2 cores", "full": "11 min on 2 cores"},
    ),
    Exhibit(
        name="figure-end-to-end",
        title="From initialisation and batches to the gain: how often the theorem holds, and how loose it is",
        layer="synthetic",
        times={"quick": "30 s on 2 cores", "default": "4 min on 2 cores", "full": "5 min on 32 cores"},
    ),
    Exhibit(
        name="figure-placement",
        title="Tolerable noise against the number of digital experts, for every strategy that chooses them",
        layer="synthetic",
        times={"quick": "20 s on 2 cores", "default": "2 min on 2 cores", "full": "15 min on 2 cores"},
    ),
    Exhibit(
        name="figure-stress",
        title="Where the claim lives: optimisers, losses, lengths of training, routings, experts, granularities",
        layer="synthetic",
        times={"quick": "15 s on 2 cores", "default": "4 min on 2 cores", "full": "4 min on 22 cores"},
    ),
    Exhibit(
        name="figure-link-map",
        title="When does MaxNNScore follow frequency in small language models, and when does MaxNN pay?",
        layer="realmodels",
        times={"quick": "2 min on 2 cores", "default": "5 min on 2 cores", "full": "19 min on two H100s"},
    ),
    Exhibit(
        name="figure-balance",
        title="Does load balancing break the link between MaxNNScore and load, and does the optimiser turn its sign?",
        layer="realmodels",
        times={"quick": "40 s on 2 cores", "default": "3 min on 2 cores", "full": "32 min on 1 core"},
    ),
)


def find(name: str, exhibits: Sequence[Exhibit]) -> Exhibit:
    """The exhibit called `name`; InputError naming the known ones if there is none."""
    for exhibit in exhibits:
        if exhibit.name == name:
            return exhibit
    kind, _, asked = name.partition("-")
    options = {known.name.partition("-")[2]: known.option for known in exhibits}
    subject = asked.lower()
    for prefix in ("figure-", "table-"):  # the names of files
        subject = subject.removeprefix(prefix)
    nearest = get_close_matches(subject, options, n=1)
    hint = (
        f"did you mean {options[nearest[0]]}? --list shows all"
        if nearest
        else f"give one of: {', '.join(options.values())}"
    )
    raise InputError(f"--{kind} {asked}: no such exhibit; {hint}")


def committed(exhibit: Exhibit, data: Traversable) -> Result | None:
    """The result of the exhibit that is kept in `data`, None if there is none yet."""
    file = data / f"{exhibit.name}.json"
    return stored(file, exhibit) if file.is_file() else None


def with_results(exhibits: Sequence[Exhibit], data: Traversable) -> list[tuple[Exhibit, Result]]:
    """The exhibits that `data` keeps a result of, each with it."""
    found = ((exhibit, committed(exhibit, data)) for exhibit in exhibits)
    return [(exhibit, result) for exhibit, result in found if result is not None]


def stored(file: Traversable, exhibit: Exhibit, presets: Sequence[str] = PRESETS) -> Result:
    """The result of the exhibit in the file, of one of the presets; InputError for any other content."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        raise InputError(f"{file}: it is no text; remove it or run {exhibit.option} again") from None
    except OSError as error:
        raise InputError(f"{file}: it cannot be read ({error.strerror}); make it readable") from None
    result = Result.from_json(text, source=file.name)
    if result.exhibit != exhibit.name:
        raise InputError(f"{file}: result.exhibit is {result.exhibit!r}: {exhibit.name!r} is needed")
    if result.preset not in presets:
        raise InputError(f"{file}: result.preset is {result.preset!r}: {' or '.join(presets)} is needed")
    return result


def needed(exhibit: Exhibit, data: Traversable) -> Result:
    """The committed result of the exhibit; InputError if `data` has none."""
    result = committed(exhibit, data)
    if result is None:
        raise InputError(f"figures/data has no {exhibit.name}.json: run {exhibit.option} --preset full")
    return result
