"""Captions: of what a molecule's nearest texts say, what its own structure bears out.

The text that most neighbours would agree with is taken (minimum Bayes risk, Kumar and Byrne, 2004);
classes, roles and other sentences that it lacks come from the others, and what names a group that
the molecule has not is left out.
"""

import math
import re
from collections import Counter
from functools import cache

from rdkit import Chem

from moleclip.texts import sentences_of

NEIGHBOURS = 10  # whose texts are looked at
SHARP = 10.0  # a neighbour's weight is exp(SHARP * score)
AGREED = 0.5  # part of the weight that has to say what the chosen text does not
FINE = 0.05  # of agreement that each claim costs which the structure denies
# What a text may claim, as a regular expression of whole words, the SMARTS that bears it out, and
# how often at least and at most.
ACID = "[CX3](=O)[OX2H,OX1-]"
PEPTIDE = "[NX3][CX4][CX3](=O)[NX3][CX4][CX3](=O)"
MANY = 99
# fmt: off
CLAIMS = (
    (r"monocarboxylic acids?( anion)?", ACID, 1, 1), (r"dicarboxylic acids?", ACID, 2, 2),
    (r"tricarboxylic acids?", ACID, 3, 3), (r"(amino|fatty|benzoic) acids?", ACID, 1, MANY),
    (r"\w*hydroxy\w*", "[OX2H,OX1-]", 1, MANY), (r"dihydroxy\w*", "[OX2H,OX1-]", 2, MANY),
    (r"trihydroxy\w*", "[OX2H,OX1-]", 3, MANY), (r"tetrahydroxy\w*", "[OX2H,OX1-]", 4, MANY),
    (r"(members? of )?phenols?", "c[OX2H]", 1, MANY), (r"catechols?", "c([OX2H])c[OX2H]", 1, MANY),
    (r"primary alcohols?", "[CH2X4][OX2H]", 1, MANY),
    (r"secondary alcohols?", "[CHX4][OX2H]", 1, MANY),
    (r"tertiary alcohols?", "[CX4;H0]([#6])([#6])([#6])[OX2H]", 1, MANY),
    (r"\w*methoxy\w*", "[CH3]O[#6]", 1, MANY), (r"dimethoxy\w*", "[CH3]O[#6]", 2, MANY),
    (r"trimethoxy\w*", "[CH3]O[#6]", 3, MANY), (r"aromatic ethers?", "c[OX2][#6]", 1, MANY),
    (r"(diether|ethers?)", "[#6][OX2][#6]", 1, MANY), (r"epoxides?", "C1OC1", 1, MANY),
    (r"methyl esters?", "[CX3](=O)O[CH3]", 1, MANY),
    (r"ethyl esters?", "[CX3](=O)O[CH2][CH3]", 1, MANY),
    (r"(carboxylic )?esters?", "[#6][CX3](=O)[OX2][#6]", 1, MANY),
    (r"acetate esters?", "[CH3]C(=O)O[#6]", 1, MANY), (r"gamma-lactones?", "O=C1CCCO1", 1, MANY),
    (r"\w*lactones?", "[CX3;R](=O)[OX2;R]", 1, MANY),
    (r"\w*lactams?", "[CX3;R](=O)[NX3;R]", 1, MANY),
    (r"\w*keto\w*", "[#6][CX3](=O)[#6]", 1, MANY), (r"\w*ketones?", "[#6][CX3](=O)[#6]", 1, MANY),
    (r"enones?", "C=CC=O", 1, MANY), (r"\w*aldehydes?", "[CX3H1]=O", 1, MANY),
    (r"(carbox)?amides?", "[CX3](=O)[NX3]", 1, MANY), (r"\w*acetamides?", "CC(=O)[NX3]", 1, MANY),
    (r"benzamides?", "c[CX3](=O)[NX3]", 1, MANY), (r"ureas?", "[NX3]C(=O)[NX3]", 1, MANY),
    (r"carbamates?( esters?)?", "[NX3]C(=O)O", 1, MANY),
    (r"primary amino compounds?", "[NX3H2,NX4H3+][#6]", 1, MANY),
    (r"secondary amino compounds?", "[NX3H1,NX4H2+]([#6])[#6]", 1, MANY),
    (r"tertiary amino compounds?", "[NX3H0,NX4H1+]([#6])([#6])[#6]", 1, MANY),
    (r"(aromatic|substituted) anilines?", "c[NX3]", 1, MANY), (r"anilines?", "c[NX3]", 1, MANY),
    (r"quaternary ammonium (salt|ion)s?", "[NX4H0+]", 1, MANY),
    (r"\w*nitriles?", "C#N", 1, MANY), (r"(c-)?nitro( compounds?)?", "[N+](=O)[O-]", 1, MANY),
    (r"hydrazides?", "C(=O)NN", 1, MANY), (r"\w*azo( compounds?)?", "N=N", 1, MANY),
    (r"sulfonamides?", "S(=O)(=O)[NX3,NX2]", 1, MANY), (r"sulfones?", "[#6]S(=O)(=O)[#6]", 1, MANY),
    (r"\w*sulfonic acids?", "S(=O)(=O)[OH,O-]", 1, MANY), (r"thiols?", "[SX2H]", 1, MANY),
    (r"(organic )?sulfides?", "[#6][SX2][#6]", 1, MANY), (r"(organic )?disulfides?", "SS", 1, MANY),
    (r"\w*phosph\w+", "P", 1, MANY), (r"\w*thio\w*", "[#16]", 1, MANY),
    (r"\w*sulf\w+", "[#16]", 1, MANY), (r"\w*chlor(o|in)\w*", "Cl", 1, MANY),
    (r"\w*fluor(o|in)\w*", "F", 1, MANY), (r"\w*brom(o|in)\w*", "Br", 1, MANY),
    (r"\w*iod(o|in)\w*", "I", 1, MANY), (r"\w*pyridines?", "n1ccccc1", 1, MANY),
    (r"\w*pyrimidines?", "n1cnccc1", 1, MANY), (r"\w*imidazoles?", "n1cncc1", 1, MANY),
    (r"\w*indoles?", "c1ccc2nccc2c1", 1, MANY), (r"quinolines?", "n1cccc2ccccc12", 1, MANY),
    (r"(1,3-)?thiazoles?", "n1cscc1", 1, MANY), (r"thiophenes?", "s1cccc1", 1, MANY),
    (r"(members? of )?furans?", "o1cccc1", 1, MANY), (r"pyrazoles?", "n1nccc1", 1, MANY),
    (r"\w*piperidines?", "N1CCCCC1", 1, MANY), (r"\w*piperazines?", "N1CCNCC1", 1, MANY),
    (r"\w*morpholines?", "N1CCOCC1", 1, MANY), (r"pyrrolidines?", "N1CCCC1", 1, MANY),
    (r"(members? of )?benzenes", "c1ccccc1", 1, MANY), (r"biphenyls?", "c-!@c", 1, MANY),
    (r"\w*benzoate\w*", "c1ccccc1C(=O)O", 1, MANY), (r"dipeptides?", PEPTIDE, 1, 1),
    (r"tripeptides?", PEPTIDE, 2, 2), (r"tetrapeptides?", PEPTIDE, 3, 3),
    (r"\w*glycosides?", "[OX2,NX3][CX4;R][OX2;R]", 1, MANY),
    (r"\w*steroids?", "C1CCC2C(C1)CCC1C2CCC2CCCC12", 0, MANY), (r"olefinic\w*", "C=C", 1, MANY),
    (r"(acetylenic|terminal acetylenic) compounds?", "C#C", 1, MANY),
    (r"\w*hydrochlorides?", "[Cl-,ClH]", 1, MANY), (r"\w*zwitterions?", "[+,-]", 2, MANY),
)
# fmt: on
# Sentences that speak of other molecules claim nothing.
OTHERS = re.compile(r"derives? from|conjugate|replaced|condensation|related|enantiomer|tautomer")
CLASSES = re.compile(r"^It is an? ")  # the sentence that lists what a molecule is


@cache
def claims():
    """Return [(pattern, SMARTS as a molecule, least, most)] of CLAIMS."""
    return [
        (re.compile(rf"\b(?:{words})\b"), Chem.MolFromSmarts(smarts), least, most)
        for words, smarts, least, most in CLAIMS
    ]


class Structure:
    """A molecule, and what of a text it denies."""

    def __init__(self, molecule):
        self.molecule, self.charge, self.counts = molecule, Chem.GetFormalCharge(molecule), {}

    def denied(self, text):
        """Return how many claims of a text the structure denies."""
        lower, wrong = text.lower(), 0
        if "conjugate base" in lower and self.charge > 0:
            wrong += 1
        if "conjugate acid" in lower and self.charge < 0:
            wrong += 1
        if OTHERS.search(lower):
            return wrong
        for i, (pattern, smarts, least, most) in enumerate(claims()):
            if pattern.search(lower):
                if i not in self.counts:
                    self.counts[i] = len(self.molecule.GetSubstructMatches(smarts))
                wrong += not least <= self.counts[i] <= most
        return wrong


def tokens_of(text):
    """Return the words, numbers and signs of a text, a list."""
    return re.findall(r"[a-z]+|\d+|[^\sa-z\d]", text.lower())


def agreement(one, other):
    """Return how alike two texts are: the mean F1 of their words and pairs of words, 0 to 1."""
    total = 0.0
    for step in (1, 2):
        mine, theirs = (Counter(zip(*(t[i:] for i in range(step)))) for t in (one, other))
        every = sum(mine.values()) + sum(theirs.values())
        total += 2 * sum((mine & theirs).values()) / max(every, 1) / 2
    return total


def weights_of(scores):
    """Return the neighbours' weights, which sum up to 1, by their scores, a list."""
    found = [math.exp(SHARP * (score - max(scores))) for score in scores]
    return [weight / sum(found) for weight in found]


def compose(molecule, neighbours):
    """Return a caption of a molecule of RDKit's.

    neighbours: [(score, text)], best first, at least one; a score is a likeness up to 1 or 2.
    """
    neighbours, structure = neighbours[:NEIGHBOURS], Structure(molecule)
    texts = [text for _, text in neighbours]
    weights, words = weights_of([score for score, _ in neighbours]), [*map(tokens_of, texts)]

    def worth(i):
        agreed = sum(w * agreement(words[i], other) for w, other in zip(weights, words))
        return agreed - FINE * sum(map(structure.denied, sentences_of(texts[i])))

    best = max(range(len(texts)), key=worth)
    first, *rest = sentences_of(texts[best])
    others = [list(sentences_of(text)) for text in texts]
    kept = [sentence for sentence in rest if not structure.denied(sentence) or listed(sentence)]
    kept += missing(kept, others, weights, structure)
    kept = [with_classes(s, others, weights, structure) if listed(s) else s for s in kept]
    return " ".join([first, *filter(None, kept)])


def listed(sentence):
    """Tell whether a sentence lists classes."""
    return bool(CLASSES.match(sentence)) and not OTHERS.search(sentence)


def kind_of(sentence):
    """Return what sentences of one kind begin with."""
    return " ".join(sentence.split()[:3]).replace(" an", " a")


def missing(kept, others, weights, structure):
    """Return sentences of kinds that most neighbours have and those kept have not."""
    kinds, found = {kind_of(sentence) for sentence in kept}, []
    for kind in dict.fromkeys(kind_of(s) for sentences in others for s in sentences[1:]):
        having = [
            (w, s) for w, each in zip(weights, others) for s in each[1:] if kind_of(s) == kind
        ]
        if kind in kinds or sum(w for w, _ in having) <= AGREED:
            continue
        good = [pair for pair in having if not structure.denied(pair[1])]
        if good:
            found.append(max(good, key=lambda pair: pair[0])[1])
    return found


def classes_of(sentence):
    """Return the classes that a sentence lists: "It is a A, a B and a C." """
    inner = sentence.removeprefix("It is ").rstrip(".")
    return [word for word in re.split(r", | and (?=an? |\w)", inner) if word]


def with_classes(sentence, others, weights, structure):
    """Return a sentence of classes without what is denied, and with what most others say.

    "" if nothing stays.
    """
    classes = [each for each in classes_of(sentence) if not structure.denied(each)]
    said = Counter()
    for weight, sentences in zip(weights, others):
        for each in {c for s in sentences[1:] if listed(s) for c in classes_of(s)}:
            said[each] += weight
    more = [each for each, weight in said.most_common() if weight > AGREED]
    classes += [each for each in more if each not in classes and not structure.denied(each)]
    if not classes:
        return ""
    start = ", ".join(classes[:-1])
    return f"It is {start} and {classes[-1]}." if start else f"It is {classes[-1]}."
