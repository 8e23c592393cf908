"""What the paper publishes stands in theory/paper.py, is right there, and stands nowhere else."""

import ast
from pathlib import Path

from theory import paper
from theory.hardware import Hardware
from theory.paper import ModelShape, Published, Statement, published

ROOT = Path(__file__).resolve().parents[2]
HERE = {ROOT / "theory/paper.py", Path(__file__).resolve()}
FOLDERS = ("theory", "synthetic", "realmodels", "figures", "tests", "benchmarks", "examples")


def test_table_1() -> None:
    """Accuracies all digital, with experts analog, with everything analog."""
    accuracies = {name: tuple(row.values()) for name, row in paper.TABLE_1.value.items()}
    assert accuracies == {"OLMoE": (63.17, 62.46, 61.54), "DeepSeekMoE": (61.28, 61.03, 55.04)}
    assert all(list(row) == ["nothing", "experts", "everything"] for row in paper.TABLE_1.value.values())


def test_table_2() -> None:
    assert [
        (
            row.digital_parameters,
            row.tokens_per_second,
            row.tokens_per_joule,
            row.accuracy,
            row.accuracy_error,
        )
        for row in paper.TABLE_2.value
    ] == [
        (0, 768, 23949, 58.45, None),
        (5.37, 49781, 123.92, 60.73, 0.10),
        (28.65, 14513, 36.25, 61.82, 0.06),
        (100, 4220, 10.55, 63.17, None),
    ]
    assert (paper.TABLE_2_BATCH.value, paper.TABLE_2_C.value) == (32, 1.5)
    assert paper.TABLE_2.value[-1].accuracy == paper.TABLE_1.value["OLMoE"]["nothing"]


def test_statements_of_the_figures() -> None:
    assert "about 5 % of the parameters" in paper.DENSE_HURTS_MORE.text
    assert "80-90 % of the experts" in paper.DENSE_HURTS_MORE.text
    assert "a third to more than a half of the loss of accuracy at c = 2.5" in paper.MAXNN_IS_BEST.text
    assert paper.RECOVERED.value == (1 / 3, 1 / 2) and paper.RECOVERED_AT.value == paper.MAGNITUDES.value[1]
    assert paper.MAXNN_IS_BEST.cited.startswith(
        "Published (arXiv 2603.02633, Figs. 4 and 5): MaxNNScore is best"
    )
    assert "Omega(1/gamma)" in paper.THEOREM.text


def test_every_constant_says_where_it_is_from() -> None:
    found = published()
    assert {"TABLE_1", "TABLE_2", "DENSE_HURTS_MORE", "MAXNN_IS_BEST", "FREQUENT_TOKENS", "OLMOE"} <= set(
        found
    )
    for name, value in found.items():
        if isinstance(value, ModelShape):
            assert value.hub.count("/") == 1, name
        else:
            words = (value.said, value.unit) if isinstance(value, Published) else (value.text,)
            assert all(words) and value.source, name


def test_hardware_has_the_paper_s_converters_and_tiles() -> None:
    assert Hardware().dac_bits == Hardware().adc_bits == paper.CONVERTER_BITS.value == 8
    assert Hardware().tile_size == paper.TILE_SIZE.value == 512


def _numbers(value: object) -> set[float]:
    """Numbers of a constant that are too particular to occur by chance: two decimals, or above a thousand."""
    if isinstance(value, dict):
        return _numbers(list(value.values()))
    if isinstance(value, list | tuple):
        return set[float]().union(*map(_numbers, value))
    if isinstance(value, int | float):
        particular = abs(value) > 1000 or (value > 1 and round(value, 1) != value)
        return {float(value)} if particular else set()
    return _numbers(list(vars(value).values())) if hasattr(value, "__dataclass_fields__") else set()


def test_no_published_number_stands_elsewhere() -> None:
    tables = _numbers([paper.TABLE_1, paper.TABLE_2])
    assert len(tables) == 6 + 12, sorted(tables)  # of each table; 768 and small whole numbers are left out
    elsewhere = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for folder in FOLDERS
        for file in sorted((ROOT / folder).rglob("*.py"))
        if file.resolve() not in HERE
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value in tables
    ]
    assert not elsewhere


def test_statement_is_a_phrase_without_a_full_stop() -> None:
    """`cited` adds the full stop."""
    statements = [value for value in published().values() if isinstance(value, Statement)]
    assert statements and not any(each.text.endswith(".") for each in statements)
