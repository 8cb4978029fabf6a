"""How people call the columns of comparisons, letter case aside."""

PROMPTS = (
    "prompt",
    "instruction",
    "question",
    "query",
    "context",
    "post",
    "history",
    "input",
    "messages",
    "conversation",
    "conversations",
    "dialogue",
    "user",
)
"""How a prompt's column may be called, the surest first."""
LISTS = (
    *("responses", "completions", "answers", "outputs", "candidates", "generations", "replies"),
    *("output", "completion", "response", "answer"),
)
"""How a column of several answers may be called."""
TEXTS = ("text", "response", "answer", "completion", "content", "output", "message", "value")
"""How the answer is called in the objects of such a list."""
RANKS = ("rank", "ranking", "place", "position")
SCORES = (
    "overall_score",
    "score",
    "pm_score",
    "rating",
    "reward",
    "overall",
    "points",
    "value",
    "label",
    "is_chosen",
    "is_best",
    "selected",
    "chosen",
    "accepted",
    "vote",
    "upvote",
    "like",
)
BEST = (
    "best_index",
    "best_idx",
    "best",
    "best_response",
    "best_answer",
    "chosen",
    "chosen_index",
    "chosen_idx",
    "preferred",
    "preferred_index",
    "choice",
    "winner",
    "selected",
    "label",
    "answer_index",
)
"""How the column may be called that says which answer of a list is best."""
SIDES = (
    ("response_a", "response_b"),
    ("response_1", "response_2"),
    ("response_0", "response_1"),
    ("response1", "response2"),
    ("answer_a", "answer_b"),
    ("answer_1", "answer_2"),
    ("answer_0", "answer_1"),
    ("completion_a", "completion_b"),
    ("completion_1", "completion_2"),
    ("completion_0", "completion_1"),
    ("output_a", "output_b"),
    ("output_1", "output_2"),
    ("output_0", "output_1"),
    ("conversation_a", "conversation_b"),
    ("model_a_response", "model_b_response"),
    ("text_a", "text_b"),
    ("human_ref_a", "human_ref_b"),
    ("left", "right"),
    ("first", "second"),
    ("a", "b"),
)
"""How the columns of two responses may be called, letter case aside."""
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("better", "worse"),
    ("accepted", "rejected"),
    ("winner", "loser"),
    ("good", "bad"),
    ("positive", "negative"),
    ("pos", "neg"),
    ("win", "lose"),
    ("winning", "losing"),
    ("best", "worst"),
    ("y_w", "y_l"),
    ("response", "rejected_response"),
)
"""How the columns of a winner and a loser may be called; with a word of ``ANSWERS`` too."""
ANSWERS = ("response", "answer", "output", "completion", "text", "message", "messages", "reply")
"""Words that may stand before or behind: ``chosen_response``, ``answer_rejected``."""
CHOSEN_BY = (
    "choice",
    "winner",
    "preference",
    "preferred",
    "label",
    "labels",
    "vote",
    "verdict",
    "better",
    "better_response",
    "better_response_id",
    "selected",
    "annotation",
    "answer",
    "preference_strength",
    "overall_preference",
    "result",
    "judgement",
    "judgment",
)
"""How the column may be called that says who won."""
PEOPLE = (
    *("annotator", "crowd", "expert", "human", "judge", "labeler", "labeller", "person", "rater"),
    *("reviewer", "user", "voter", "worker"),
)
"""How columns may be called that are people, with a number behind."""
MADE_OF_VOTES = frozenset(
    (
        *("adjudicated", "adjudication", "agg", "aggregate", "aggregated", "agreed", "consensus"),
        *("final", "gold", "golden", "majority", "resolved", "truth"),
    )
)
"""Parts of the names of columns that say what came of several people's choices."""
QUANTITIES = (
    *("count", "counts", "day", "difficulty", "fold", "id", "idx", "index", "length", "len"),
    *("level", "line", "month", "n", "num", "number", "points", "quality", "rank", "rating"),
    *("round", "row", "score", "seconds", "seed", "split", "strength", "time", "tokens", "turn"),
    *("turns", "version", "year"),
)
"""Parts of the names of columns whose numbers are no choices."""
QUALITIES = frozenset(
    (
        *("accuracy", "coherence", "correctness", "grade", "harmlessness", "helpful"),
        *("helpfulness", "honesty", "likes", "overall", "points"),
        *("quality", "rank", "rating", "ratings", "reward", "score", "scores", "stars"),
        *("truthfulness", "upvotes", "votes"),
    )
)
"""Parts of the names of columns whose numbers say how good one answer is."""
OTHERS = {
    "annotator": (
        "annotator",
        "annotator_id",
        "worker",
        "worker_id",
        "judge",
        "rater",
        "who",
        "user_id",
    ),
    "comparison_id": ("comparison_id", "pair_id", "question_id", "item_id", "id"),
    "strength": ("strength", "margin", "confidence"),
    "seconds": ("seconds", "duration", "lead_time"),
    "system": ("system", "system_prompt"),
}
"""Further columns, and how they may be called."""
