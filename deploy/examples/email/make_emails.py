"""Makes up e-mails, from a fixed seed: most are about the day's work, and some should be seen by compliance."""

import csv
import random

SEED = 20260302
COLUMNS = ["id", "content", "flagged"]

NAMES = ["Anna", "Bruno", "Clara", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas"]
GREETINGS = ["Hi {name}.", "{name}:", "Good morning {name}.", "Dear {name}."]
ENDINGS = ["Thanks, {name}", "Best regards, {name}", "Talk soon! {name}", "<b>{name}</b>"]

# Both kinds talk about the same things; it is what somebody is asked to do with them that differs.
TOPICS = ["the pipeline contract", "the quarterly report", "the gas storage deal", "the audit", "our trading positions",
          "the invoice from the broker", "the meeting with the regulator", "the forecast for March"]

ORDINARY = [
    "Could you send me the latest version of {topic} before lunch?",
    "I have attached the slides about {topic} for the review on Monday.",
    "Please book a room and dial everybody in to talk about {topic}.",
    "The numbers for {topic} look fine to me, so let us go ahead with the schedule.",
    "Legal has approved {topic} and the signed copy is in the shared folder.",
    "Are you free for coffee on Thursday? I would like your view on {topic}.",
    "The training about travel expenses moves to next week because of {topic}.",
    "Our customer asked for a call about {topic} and would like to know the delivery date.",
    "Happy birthday! We will have cake in the kitchen right after {topic}.",
    "I updated the spreadsheet about {topic} and fixed the totals in the second column.",
]
SUSPICIOUS = [
    "Keep {topic} off the books until the quarter is over and tell nobody.",
    "Please delete every message about {topic} and shred the paper copies.",
    "Nobody outside this room may hear about {topic}, so use your private phone.",
    "We should hide the losses behind {topic} before the auditors find them.",
    "Backdate {topic} so that it looks as if we had signed in December.",
    "A little gift in cash for his help with {topic} will stay between us.",
    "Move the losses of {topic} to the partnership, that way nobody has to disclose them.",
    "Do not write anything down about {topic}; the auditors must never see it.",
]


def make_email(number, dice):
    flagged = int(dice.random() < 0.3)
    about = {"topic": dice.choice(TOPICS)}
    sentences = [one.format(**about) for one in dice.sample(ORDINARY, 2)]
    # Some lines of either kind are in e-mails of the other, as quotations or slips are.
    if dice.random() < (0.95 if flagged else 0.05):
        sentences.insert(dice.randrange(3), dice.choice(SUSPICIOUS).format(**about))
    greeting, ending = (dice.choice(lines).format(name=dice.choice(NAMES)) for lines in (GREETINGS, ENDINGS))
    return [number, " ".join([greeting, *sentences, ending]), flagged]


def write_emails(folder, training=300, held_out=100):
    """Writes ``emails.csv``, to learn from, and ``new_emails.csv``, to judge; both with what is right."""
    dice = random.Random(SEED)
    emails = [make_email(number, dice) for number in range(1, training + held_out + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("emails.csv", emails[:training]), ("new_emails.csv", emails[training:])):
        with open(folder / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
