#!/usr/bin/env python3
"""Makes the small vocabularies of this directory and the ids that Hugging Face's tokenizers and Google's
sentencepiece give for a list of texts. Optional: the files are stored; run it only to make them again.

    python3 -m venv venv && venv/bin/pip install tokenizers==0.23.3 sentencepiece==0.2.3
    venv/bin/python make_fixtures.py
"""
import json
import os

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")

CORPUS = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "The quick brown fox jumps over the lazy dog; the dog doesn't care, and the fox isn't sorry.",
    "In 1859 there were 24 chapters; in 2024 there are 1,234,567 copies. They're here, we've read them, I'll say.",
    "Der Fuchs läuft über die Straße. Où est la bibliothèque? El niño comió piñas. Ångström, naïve café.",
    "Привет, как дела? Быстрая лиса. 你好，世界。 こんにちは世界 안녕하세요",
    "def f(x):\n    return x + 1\n\n\tif x == 2:\n        pass\n",
    "aaaa aaaaaaaa bababab mississippi  two  spaces   three",
]

TEXTS = CORPUS + [
    "", " ", "  ", "   ", "a", " a", "a ", "  a  b  ", "\n", "\n\n\n", "\t\t", " \n \n x", "\r\n\r\nx\r",
    "Hello, world!", "don't DON'T don\u017ft 'LL 'll 's'S", "they'RE 're", "x1y22z333w4444v55555", "½ ² ٣٤٥ Ⅷ",
    "\u00a0nbsp\u00a0\u2003em\u3000ideographic\u180emongolian\u200bzero", "e\u0301 combining é", "🙂 🏳️‍🌈👩‍👩‍👧",
    "\u0000 nul", "\ufeff bom", "<s>not special</s>", "<|eot_id|> text <|end_of_text|>", "<keep>  <lr> x <lr>y",
    "▁ visible ▁▁ space", "<0x41>", "ﬁ ligature ß ẞ İ ı", "\U00010348 gothic \U0010ffff last", "!!!???...", "a,b;c:d",
    "camelCase_snake-kebab", "𝟘𝟙 math digits", "اَلْعَرَبِيَّةُ", "हिन्दी", "x" * 70 + "aaaa" * 20, "((([[[{{{}}}]]])))",
    " leading", "trailing ", "tab\tand\x0bvt\x0cff\x85nel\u2028ls", "the the  the   the", "I'll we've 've", "12 345 6789",
]


def byte_level_trainer(vocab_size, special):
    return trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                               initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def llama3():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS * 2, byte_level_trainer(
        420, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]))
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])])
    return t


def gpt2():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS * 2, byte_level_trainer(400, ["<|endoftext|>"]))
    t.add_tokens([AddedToken("<keep>", normalized=False), AddedToken("<lr>", lstrip=True, rstrip=True, normalized=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def steps(pre):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(pre + [pre_tokenizers.ByteLevel(False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, byte_level_trainer(330, []))
    return t


def llama2():
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = ["<0x%02X>" % b for b in range(256)]
    # Trained on words, as SentencePiece does, and with the byte tokens put in by hand afterwards.
    w = Tokenizer(models.BPE(unk_token="<unk>"))
    w.pre_tokenizer = pre_tokenizers.Metaspace()
    w.train_from_iterator(CORPUS[:4] * 2, trainers.BpeTrainer(vocab_size=220, special_tokens=["<unk>"], show_progress=False))
    learnt = json.loads(w.to_str())["model"]
    j = json.loads(t.to_str())
    tokens = special + bytes_ + [k for k, _ in sorted(learnt["vocab"].items(), key=lambda kv: kv[1]) if k != "<unk>"]
    j["model"]["vocab"] = {k: i for i, k in enumerate(tokens)}
    # SentencePiece knows scores only: every way to cut a token in two is a merge, best token first.
    vocab = j["model"]["vocab"]
    j["model"]["merges"] = [[k[:i], k[i:]] for k in tokens[259:] for i in range(1, len(k))
                            if k[:i] in vocab and k[i:] in vocab]
    t = Tokenizer.from_str(json.dumps(j))
    t.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t


def metaspace(scheme, split, fuse):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=fuse))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    if split:
        t.decoder = decoders.Metaspace(prepend_scheme=scheme, split=split)
    else:  # the Metaspace decoder would drop every space of the first token, and here tokens have some within
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>"], show_progress=False))
    return t


def save(name, t):
    t.encode_special_tokens = True  # like our parse_special = false
    cases = []
    for text in TEXTS:
        plain = t.encode(text, add_special_tokens=False).ids
        t.encode_special_tokens = False
        special = t.encode(text, add_special_tokens=False).ids
        t.encode_special_tokens = True
        cases.append({"text": text, "ids": plain, "special": special, "decoded": t.decode(plain)})
    bos = t.encode("a", add_special_tokens=True).ids != t.encode("a", add_special_tokens=False).ids
    with open(os.path.join(HERE, name + ".json"), "w") as f:
        f.write(t.to_str())
    with open(os.path.join(HERE, name + ".cases.json"), "w") as f:
        json.dump({"adds_bos": bos, "cases": cases}, f, ensure_ascii=True, separators=(",", ":"))


def save_sentencepiece(name, **options):
    path = os.path.join(HERE, name)
    text = os.path.join(HERE, "corpus.tmp")
    with open(text, "w") as f:
        f.write("\n".join(line.replace("\n", " ") for line in CORPUS * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=text, model_prefix=path, model_type=options.pop("model_type", "bpe"), vocab_size=420, byte_fallback=True,
        normalization_rule_name="identity", character_coverage=0.98, minloglevel=2, **options)
    os.remove(text)
    os.remove(path + ".vocab")
    sp = sentencepiece.SentencePieceProcessor(model_file=path + ".model")
    # A U+2581 in the text is left out: sentencepiece decodes one at the start to nothing when it removes white space.
    cases = [{"text": t, "ids": sp.encode(t), "decoded": sp.decode(sp.encode(t))}
             for t in TEXTS if "\0" not in t and "▁" not in t]
    with open(path + ".cases.json", "w") as f:
        json.dump({"adds_bos": False, "cases": cases}, f, ensure_ascii=True, separators=(",", ":"))


def main():
    save("llama3", llama3())
    save("gpt2", gpt2())
    save("llama2", llama2())
    p = pre_tokenizers
    save("digits", steps([p.Digits(individual_digits=True), p.Punctuation("contiguous")]))
    save("digit_runs", steps([p.Digits(individual_digits=False), p.Punctuation()]))
    save("merged_next", steps([p.Split(" ", "merged_with_next")]))
    save("merged_previous", steps([p.Split(Regex(r"\s"), "merged_with_previous")]))
    save("contiguous", steps([p.Split(Regex(r"\p{L}|\p{N}"), "contiguous", invert=True)]))
    save("removed", steps([p.Split(Regex(r"\s+"), "removed")]))
    save("inverted", steps([p.Split(Regex(r"\w+".replace(r"\w", r"[\p{L}_]")), "removed", invert=True)]))
    save("metaspace_first", metaspace("first", True, False))
    save("metaspace_always", metaspace("always", False, True))
    save_sentencepiece("spm")
    save_sentencepiece("spm_raw", remove_extra_whitespaces=False, add_dummy_prefix=True)
    save_sentencepiece("spm_no_prefix", remove_extra_whitespaces=False, add_dummy_prefix=False,
                       user_defined_symbols=["<keep>", "<lr>"])
    save_sentencepiece("spm_user_defined", user_defined_symbols=["<keep>"])
    save_sentencepiece("spm_unigram", model_type="unigram", hard_vocab_limit=False)
    for name in ["spm_unigram", "spm_user_defined"]:  # refused
        os.remove(os.path.join(HERE, name + ".cases.json"))


main()
