"""The claims that the evidence is about, each with what would show it.

Result files are `experiments/results/NAME.json` and `NAME-….json`, by the name of a claim.
"""

from typing import NamedTuple


class Claim(NamedTuple):
    """A sentence that numbers can speak for or against."""

    name: str
    title: str
    sentence: str
    paper: str  # what the paper says of it
    control: str  # what must stand beside it


CLAIMS = (
    Claim(
        "retrofit",
        "A pretrained decoder gains from passages",
        "A pretrained decoder that gets chunked cross-attention needs fewer bits for "
        "held-out text with its passages than without them.",
        "A baseline that stays frozen becomes a RETRO in 3 % of its training tokens.",
        "The same decoder without passages, before training, and with passages drawn at "
        "random; intervals over five seeds and over documents.",
    ),
    Claim(
        "finetuned",
        "Passages beside fine-tuning on the same tokens",
        "A decoder that reads passages needs fewer bits for held-out text than the same decoder "
        "that was fine-tuned on the same tokens and reads nothing.",
        "Not in the paper.",
        "All of the decoder is trained, at three learning rates; the same seeds, batches and "
        "documents.",
    ),
    Claim(
        "ablations",
        "What each part of the model gives",
        "The rows of the paper's table 13 come out on the same side of the default.",
        "Both parts of a neighbour 0.822 bits per byte, the continuation alone 0.895, the "
        "match alone 0.950, no retrieval 0.987 (table 13, one run a row).",
        "Five seeds a row, paired with the default's; the paper's difference beside ours.",
    ),
    Claim(
        "leakage",
        "How much of the gain is copying",
        "A part of the gain stays on chunks that share little with what was retrieved.",
        "The gain shrinks with the overlap, and some of it stays at 12.5 % (curves only).",
        "Gains by longest shared run and without shared 13-grams, each with an interval; "
        "the true text in the database as a canary.",
    ),
    Claim(
        "sizes",
        "Retrieval is worth parameters",
        "A model that reads is as good as a larger one that does not.",
        "7.5B parameters with retrieval beat Jurassic-1 of 178B on 10 of 16 parts of the "
        "Pile (table 15).",
        "Baselines of four sizes on the same tokens.",
    ),
    Claim(
        "updates",
        "Knowledge is changed by changing the database",
        "After documents are exchanged the same model predicts the new facts, without a "
        "step of training.",
        "Said in the paper's discussion, and not measured there.",
        "The old, the new, no and a wrong database; fields that changed beside those that "
        "did not.",
    ),
    Claim(
        "attribution",
        "What was read can be named",
        "The passage that is attended to most is the one that mattered.",
        "Shown by samples, and not measured.",
        "Each passage left out in turn.",
    ),
    Claim(
        "prompt",
        "Cross-attention beside passages in the prompt",
        "Cross-attention gains about what the same passages gain in the prompt, for less "
        "computing.",
        "Not in the paper.",
        "The same model, passages and text; FLOPs a token.",
    ),
    Claim(
        "questions",
        "Questions whose answer is in the database",
        "The model answers more questions with passages than without.",
        "Natural Questions, exact match: 30.4 % without passages, 45.5 % with them, "
        "fine-tuned (table 5).",
        "Retrieval off, and the passages in the prompt; recall of the search.",
    ),
    Claim(
        "false_answers",
        "Questions whose answer is not in the database",
        "Passages do not make the model say what is false.",
        "Not in the paper.",
        "The same questions with retrieval off.",
    ),
    Claim(
        "database_size",
        "A larger database and more neighbours help",
        "Bits per byte fall with the size of the database.",
        "They fall with the database, and up to about 10 neighbours at 172M and 40 at 7B.",
        "Four sizes and numbers of neighbours, of one model.",
    ),
    Claim(
        "wikitext",
        "WikiText",
        "Perplexity falls with a database of Wikipedia.",
        "Wikitext103, validation: 21.53 without retrieval, 18.46 with a database of "
        "Wikipedia (table 4).",
        "Text that overlaps is left out; the same decoder fine-tuned.",
    ),
)
