"""Which labelling tool a section of the settings makes: the one place that knows all of them."""

from functools import singledispatch

from rlhf_core.config import (
    AiLabelerConfig,
    FileLabelerConfig,
    LabelerConfig,
    LabelStudioLabelerConfig,
    SimulatedLabelerConfig,
)
from rlhf_core.feedback.labeler import Labeler
from rlhf_core.stages.labels.ai import AiLabeler
from rlhf_core.stages.labels.files import FileLabeler
from rlhf_core.stages.labels.label_studio import LabelStudioLabeler
from rlhf_core.stages.labels.simulated import SimulatedLabeler


@singledispatch
def labeler_of(settings: LabelerConfig) -> Labeler:
    """Return who votes; nothing is asked of them yet."""
    raise TypeError(f"{type(settings).__name__} is registered with no labeler")


labeler_of.register(AiLabelerConfig, AiLabeler)
labeler_of.register(FileLabelerConfig, FileLabeler)
labeler_of.register(LabelStudioLabelerConfig, LabelStudioLabeler)
labeler_of.register(SimulatedLabelerConfig, SimulatedLabeler)
