"""How likely it is that one response beats another, given their scores."""

from torch import Tensor
from torch.nn import functional as F

from rlhf_core.functional.shapes import require_same_shape


def soft_bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    probability: Tensor,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """Cross-entropy between a soft label and the model's probability that chosen wins.

        d    = s_chosen - s_rejected
        loss = -p log sigmoid(d - m) - (1 - p) log sigmoid(-d - m)

    With p = 1 and m = 0 this is -log sigmoid(d), that of Bradley & Terry (1952) and Ouyang et al.
    (2022), arXiv:2203.02155, eq. 1; with p = 1 and a margin m, which the better one is to win by,
    that of Touvron et al. (2023), arXiv:2307.09288, eq. 2. Without a margin the minimum is at
    d = log(p / (1 - p)), so a pair whose annotators disagree asks for a small gap. Wang et al.
    (2024), arXiv:2401.06080. Whichever response is called chosen, the loss is the same.

    Args:
        chosen_scores: [P] float, scores of the responses more likely to be better.
        rejected_scores: [P] float, scores of the others, same order.
        probability: [P] float in [0, 1], probability p that ``chosen`` is better.
        margin: [P] or one for all, m >= 0, by which the better score should be higher.

    Returns:
        [P] loss per pair, in nats.

    Raises:
        ShapeError: the three shapes differ.
    """
    require_same_shape(
        chosen_scores=chosen_scores, rejected_scores=rejected_scores, probability=probability
    )
    gap = chosen_scores - rejected_scores
    won, lost = F.logsigmoid(gap - margin), F.logsigmoid(-gap - margin)
    return -probability * won - (1.0 - probability) * lost
