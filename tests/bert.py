"""A tiny BERT of random weights in Hugging Face's layout, and texts of small molecules."""

import json
import struct

import numpy as np
from conftest import small_molecules
from rdkit import Chem

LAYERS, WIDTH = 2, 32
WORDS = (
    "the molecule is a it has of with carbon atoms rings nitrogen oxygen ring and role . , 1 2 3"
)
GROUPS = {"an amide": "C(=O)N", "a benzene ring": "c1ccccc1", "a halogen": "[F,Cl,Br,I]"}
GROUPS |= {"a hydroxy group": "[OX2H]", "a nitrile": "C#N", "an amine": "[NX3;!$(NC=O)]"}
GROUPS |= {"a carboxylic acid": "C(=O)[OX2H]", "an ether": "[#6]O[#6]", "sulfur": "[#16]"}


def write_bert(folder):
    """Write config.json, model.safetensors (fp16) and tokenizer.json; return the folder."""
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split()])
    words |= dict.fromkeys(" ".join(GROUPS).split())
    vocabulary = {word: i for i, word in enumerate(words)}
    config = {"model_type": "bert", "hidden_act": "gelu", "vocab_size": len(words)}
    config |= {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config |= {"intermediate_size": 48, "max_position_embeddings": 64, "layer_norm_eps": 1e-12}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]"}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    ends = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")]
    single = [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]]
    known = {n: {"id": n, "ids": [vocabulary[n]], "tokens": [n]} for n in ("[CLS]", "[SEP]")}
    after = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": known,
    }
    names = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
    tokenizer = {"version": "1.0", "model": model, "post_processor": after, "added_tokens": []}
    tokenizer["normalizer"] = {"type": "BertNormalizer"} | dict.fromkeys(names, True)
    tokenizer["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_safetensors(folder / "model.safetensors", weights_of(len(words), 64, 48))
    return folder


def weights_of(vocabulary, positions, hidden):
    """Return {name: array} of a BERT, and what of it nobody uses."""
    random, shapes = np.random.default_rng(0), {}
    for name, size in (("word", vocabulary), ("position", positions), ("token_type", 2)):
        shapes[f"embeddings.{name}_embeddings.weight"] = (size, WIDTH)
    linear = {"embeddings.LayerNorm": (WIDTH,), "pooler.dense": (WIDTH, WIDTH)}
    for i in range(LAYERS):
        at = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            linear[f"{at}attention.self.{part}"] = (WIDTH, WIDTH)
        linear[f"{at}attention.output.dense"] = (WIDTH, WIDTH)
        linear |= {f"{at}attention.output.LayerNorm": (WIDTH,), f"{at}output.LayerNorm": (WIDTH,)}
        linear |= {f"{at}intermediate.dense": (hidden, WIDTH), f"{at}output.dense": (WIDTH, hidden)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    found = {name: random.normal(0, 0.3, shape) for name, shape in shapes.items()}
    found = {f"bert.{name}": array.astype(np.float16) for name, array in found.items()}
    return found | {"embeddings.position_ids": np.arange(positions)}


def write_safetensors(path, arrays):
    """Write arrays in the layout of .safetensors."""
    header, data = {}, b""
    for name, array in arrays.items():
        span = [len(data), len(data) + array.nbytes]
        kind = {"f": "F16", "i": "I64"}[array.dtype.kind]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": span}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def described(smiles):
    """Return what a text says of a SMILES: groups and counts that it has."""
    molecule = Chem.MolFromSmiles(smiles)
    has = [
        n for n, smarts in GROUPS.items() if molecule.HasSubstructMatch(Chem.MolFromSmarts(smarts))
    ]
    carbons = sum(atom.GetAtomicNum() == 6 for atom in molecule.GetAtoms())
    rings = molecule.GetRingInfo().NumRings()
    text = f"The molecule is a compound of {carbons} carbon atoms and {rings} rings."
    return " ".join([text, *(f"It has {name}." for name in has)])


def write_texts(path, count):
    """Write a table of small molecules with their texts; return the records."""
    smiles = [line.split()[0] for line in small_molecules(count)]
    rows = [[f"m{i}", text, described(text)] for i, text in enumerate(smiles)]
    lines = ["name,smiles,description"] + [f'{n},{s},"{d}"' for n, s, d in rows]
    path.write_text("\n".join(lines) + "\n")
    return rows
