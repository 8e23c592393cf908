"""Experiments and the cost model compare with what theory/paper.py says, not with numbers of their own."""

import pytest

from realmodels import cost, tasks
from realmodels.experiments import figure_3, figure_4, table_1, table_2
from realmodels.experiments import tasks as continuation
from theory import paper
from theory.placement import STRATEGIES


def test_experiments_rest_on_it() -> None:
    """Values that have the form of other numbers, too, and so escape the search of tests/theory/test_paper.py."""
    assert paper.CONVERTER_BITS.value == table_1.RULE_BITS
    assert figure_4.FRACTIONS == paper.DIGITAL_EXPERTS.value == (0.125, 0.25)
    assert set(paper.BASELINES.value) <= set(figure_4.BASELINES) <= set(STRATEGIES)
    third, largest = paper.RECOVERED.value[0], paper.RECOVERED_AT.value
    assert (third, third) == (figure_4.RULE_1_RECOVERED, continuation.RULE_4_RECOVERED)
    assert (figure_4.RULE_C, continuation.RULE_C, max(figure_3.RULE_1_C)) == (largest, largest, largest)
    assert (paper.TABLE_2_C.value, paper.TABLE_2_BATCH.value) == (table_2.C, table_2.BATCH)
    assert (
        *("piqa", "arc_easy", "arc_challenge", "boolq", "hellaswag", "winogrande", "mathqa", "mmlu"),
    ) == tasks.PAPER_TASKS
    low, high = paper.EXPERTS_THAT_HURT_LESS.value
    assert low < float(figure_3.RULE_1_EXPERTS.split(" ")[0]) / 100 < high


def test_table_2_keeps_the_order_of_the_paper_and_adds_one_row() -> None:
    rows = [row for row in table_2.ROWS if row is not table_2.OURS]
    assert [row.label for row in rows] == [row.placement for row in paper.TABLE_2.value]
    assert table_2.ROWS.index(table_2.OURS) == 2 and table_2.OURS.published is None


@pytest.mark.parametrize(
    ("shape", "name"), [(cost.OLMOE, "OLMoE-1B-7B"), (cost.DEEPSEEK_MOE, "deepseek-moe-16b-base")]
)
def test_shapes_have_as_many_parameters_as_the_models_names_say(shape: cost.Shape, name: str) -> None:
    experts = shape.moe_layers * shape.experts * shape.expert_parameters
    billions = {"OLMoE-1B-7B": 7, "deepseek-moe-16b-base": 16}[name]
    assert (experts + shape.dense_parameters) / 1e9 == pytest.approx(billions, rel=0.08)
