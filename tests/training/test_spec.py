import pytest

from mobileclip.serialization import from_json, to_json
from mobileclip.training import TrainingSpec
from tests.errors import fails
from tests.training.runs import training_spec


def test_unknown_keys_and_values_out_of_range_are_refused():
    text = to_json(training_spec(9))
    with fails(ValueError, "'learning_rate'"):
        from_json(text.replace('"seed"', '"learning_rate"'), TrainingSpec)
    with fails(ValueError, "ema_decay"):
        training_spec(9, ema_decay=1.0)
    with pytest.raises(ValueError, match="precision"):
        training_spec(9, precision="float8")
