"""Tokenizer expansion: nothing is lost, nothing old moves, and an expanded model survives saving, adapters and generation."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialectbook.files import UserError
from dialectbook.model import train_tokenizer
from dialectbook.vocabulary import (STARTS, byte_tokens, cut, expand_model, expand_tokenizer, freeze_but_new, knee, learn_additions,
                                    measure, old_pieces)

ENGLISH = ["How do I keep a cat calm at the vet?", "Water the plant once a week, and twice in summer (2 litres).",
           "Hello there! The shop opens at 9:30 and closes at 17:00.", "What is the weather like in the mountains today?"] * 5
ARABIC = ["كيف أحافظ على هدوء القطة عند الطبيب؟", "اسق النبتة مرة في الأسبوع، ومرتين في الصيف.", "يا هلا والله، كيفك اليوم؟ وش أخبارك؟",
          "أبغى أروح السوق بدري عشان الزحمة، إيش رايك؟", "وَالله مَا أدري، بس القطة عند الطبيب ٣ أيام."] * 5
SAMPLES = ["كيف الحال؟", "مَرْحَبًا", "١٢٣ و 456", "Hello, Jeddah 👋🏽", "<DIALECT=NAJDI>وش رايك؟", "<DIALECT=HIJAZI>إيش رايك؟", "### Response:\n",
           "أبغى meeting بكرة 9:30", "پچگ", "", "ـــ", "ا" * 50]
WORDS = st.sampled_from([word for text in ARABIC + ENGLISH for word in text.split()] + SAMPLES)
TEXTS = st.one_of(st.lists(WORDS, max_size=8).map(" ".join), st.text(max_size=30),
                  st.text(alphabet="\u0627\u0644\u0645\u064e\u0651\u0640\u060c\u0663 aZ9.\n👋", max_size=30))


def llama_two(texts=ENGLISH):
    """Return a tokenizer of Llama-2's kind: SentencePiece-style BPE with byte fall-back, made from these texts and a few Arabic letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaTokenizer

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    plain.train_from_iterator(list(texts) + ["ال ال و م"], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(plain.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    return LlamaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[tuple(pair) for pair in model["merges"]])


@pytest.fixture(scope="module", params=["byte-level", "llama-2"])
def expansion(request):
    old = train_tokenizer(ENGLISH, 400) if request.param == "byte-level" else llama_two()
    return old, expand_tokenizer(old, learn_additions(old, ARABIC, 150), 90)


def decoded(tokenizer, text):
    return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_old_tokens_keep_their_ids(expansion):
    """A shifted id would give every old word the embedding of another."""
    old, new = expansion
    assert len(new) == len(old) + 90
    assert all(new.get_vocab()[token] == i for token, i in old.get_vocab().items())
    assert sorted(new.get_vocab().values()) == list(range(len(new)))
    assert old.special_tokens_map == new.special_tokens_map


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_nothing_is_lost(expansion, text):
    """Arabic, English, digits, emoji, marks, tags, anything: what is encoded comes back."""
    text = text.replace("\u2581", "_")  # SentencePiece writes spaces so: the old Llama-2 tokenizer has no other sign for it
    old, new = expansion
    if decoded(old, text) == text:
        assert decoded(new, text) == text


@pytest.mark.parametrize("text", SAMPLES)
def test_samples_come_back(expansion, text):
    old, new = expansion
    assert decoded(old, text) == decoded(new, text) == text


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.lists(st.sampled_from(" ".join(ENGLISH).split()), max_size=8).map(" ".join),
                      st.text(alphabet=st.characters(codec="latin-1"), max_size=30)))
def test_english_is_cut_as_before(expansion, text):
    """English fertility must not move: not a single id changes in a text without Arabic."""
    old, new = expansion
    assert ids(old, text) == ids(new, text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_expansion_never_costs_tokens(expansion, text):
    old, new = expansion
    assert len(ids(new, text)) <= len(ids(old, text))


def test_merges_are_consistent(expansion):
    """Every added token can be produced: its own pieces merge back into it, whatever older merges do first."""
    old, new = expansion
    for token in set(new.get_vocab()) - set(old.get_vocab()):
        assert [piece.value for piece in new.backend_tokenizer.model.tokenize(token)] == [token]
    state = json.loads(new.backend_tokenizer.to_str())["model"]
    vocabulary = state["vocab"]
    assert all(left in vocabulary and right in vocabulary and left + right in vocabulary for left, right in state["merges"])


def test_a_smaller_vocabulary_is_the_beginning_of_a_larger_one(expansion):
    """Curves over the size compare nested vocabularies."""
    old, _ = expansion
    additions = learn_additions(old, ARABIC, 150)
    small, large = expand_tokenizer(old, additions, 40), expand_tokenizer(old, additions, 90)
    assert small.get_vocab().items() <= large.get_vocab().items()
    assert learn_additions(old, ARABIC, 40)["merges"] == additions["merges"][:len(learn_additions(old, ARABIC, 40)["merges"])]
    with pytest.raises(UserError, match="ask for fewer"):
        expand_tokenizer(old, additions, 100_000)


def test_measures(expansion):
    """Fertility in context, with a word, a space and a byte of known cost."""
    old, new = expansion
    before, after = measure(old, ARABIC), measure(new, ARABIC)
    assert before["words"] == after["words"] == sum(len(text.split()) for text in ARABIC)
    assert before["tokens"] == sum(len(ids(old, text)) for text in ARABIC) == sum(tokens for tokens, _ in before["per_text"])
    assert after["fertility"] < before["fertility"] / 2 and after["whole"] > before["whole"] and after["bytes"] < before["bytes"]
    assert measure(old, ENGLISH)["tokens"] == measure(new, ENGLISH)["tokens"]
    assert measure(old, ENGLISH)["bytes"] == 0 and 128 <= len(byte_tokens(old)) <= 256
    for text in ARABIC:
        assert "".join(piece for piece, _ in cut(new, text)) == text
    assert knee([0, 1, 2, 3, 4], [10.0, 2.0, 1.5, 1.2, 1.0]) == 1


def test_reloads_the_same(expansion, tmp_path):
    """A tokenizer class that rebuilds itself on loading once lost added merges."""
    from transformers import AutoTokenizer

    _, new = expansion
    new.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == new.get_vocab()
    for text in ARABIC + ENGLISH + SAMPLES:
        assert ids(again, text) == ids(new, text) and decoded(again, text) == text
        assert again(text)["input_ids"] == new(text)["input_ids"]


def test_other_tokenizers_are_refused():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(UserError, match="can be expanded without losing text"):
        learn_additions(words, ARABIC, 10)


# ---- embeddings ----------------------------------------------------------------------------------------------------

def small_llama(tokenizer, tied):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                        num_attention_heads=2, tie_word_embeddings=tied, eos_token_id=2, bos_token_id=1)).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("start", STARTS)
def test_starts(expansion, start, tied):
    """Old rows stay as they are; new rows are what the name says, in both matrices."""
    import torch

    old, new = expansion
    model = small_llama(old, tied)
    before = [matrix.weight.detach().clone() for matrix in (model.get_input_embeddings(), model.get_output_embeddings())]
    expand_model(model, old, new, start, seed=3)
    after = [matrix.weight.detach() for matrix in (model.get_input_embeddings(), model.get_output_embeddings())]
    assert (after[0].data_ptr() == after[1].data_ptr()) == tied and model.config.vocab_size == len(new)
    for sign, (was, now) in zip((1, -1), zip(before, after)):
        assert now.shape[0] == len(new) and torch.equal(now[:len(old)], was)
        for i, spelled in list(old_pieces(old, new).items())[::7]:
            if start == "pieces":
                assert torch.allclose(now[i], was[spelled].mean(0), atol=1e-6)
            if start == "all":
                assert torch.allclose(now[i], was.mean(0), atol=1e-6)
            if start == "exponential" and not tied:
                near = now[i] - was[spelled[-1 if sign == 1 else 0]]
                assert near.norm() <= (now[i] - was[spelled[0 if sign == 1 else -1]]).norm() + 1e-6
        if start == "random":
            assert torch.allclose(now[len(old):].norm(dim=-1), was.norm(dim=-1).mean(), rtol=1e-4)
    with pytest.raises(UserError, match="choose one of"):
        expand_model(model, old, new, "zeros")


def test_pieces_spell_the_token(expansion):
    old, new = expansion
    for i, spelled in old_pieces(old, new).items():
        assert spelled and old.decode(spelled).strip() == new.decode([i]).strip()


@pytest.mark.parametrize("tied", [True, False])
def test_only_new_rows_learn(expansion, tied):
    """The first phase trains new embeddings only: nothing else may move, and after it everything may again."""
    import torch

    old, new = expansion
    model = expand_model(small_llama(old, tied), old, new)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    hooks = freeze_but_new(model, len(old))
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1, weight_decay=0.0)
    batch = torch.tensor([ids(new, ARABIC[0])])
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    for name, weight in model.named_parameters():
        moved = (weight != before[name]).reshape(len(weight), -1).any(1)
        assert not moved[:len(old)].any() if "embed" in name or "lm_head" in name else not moved.any()
    assert (model.get_input_embeddings().weight[len(old):] != before["model.embed_tokens.weight"][len(old):]).any()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("tied", [True, False])
def test_expanded_model_lives_on(expansion, tied, tmp_path):
    """Resize, save, reload, adapter, reload, generate: the way of a user, on a stand-in in the hub's format."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    old, new = expansion
    model = expand_model(small_llama(old, tied), old, new)
    model.save_pretrained(tmp_path / "base")
    new.save_pretrained(tmp_path / "base")
    assert (tmp_path / "base/model.safetensors").is_file()

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", use_safetensors=True)
    prompt = tokenizer(ARABIC[0], return_tensors="pt")["input_ids"]
    assert prompt.max() >= len(old)
    assert torch.allclose(base(input_ids=prompt).logits, model(input_ids=prompt).logits, atol=1e-5)

    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    expected = tuned.eval()(input_ids=prompt).logits
    tuned.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.allclose(again(input_ids=prompt).logits, expected, atol=1e-5)
    output = again.generate(input_ids=prompt, max_new_tokens=8, do_sample=True, pad_token_id=2)
    assert output.shape[1] > prompt.shape[1] and isinstance(tokenizer.decode(output[0]), str)


def test_a_seed_gives_the_same_start(expansion):
    """The order of a vocabulary once changed from process to process, and with it which token got which random row."""
    old, new = expansion
    assert list(old_pieces(old, new)) == list(range(len(old), len(new)))


def test_pieces_escape_and_keep_the_text(expansion):
    """Text from models and data must not become markup, and what is shown is the text."""
    import html
    import re

    from dialectbook.vocabulary import pieces

    for text in ("<script>alert(1)</script> الإتقان", "لا إله", "plain & simple"):
        shown = pieces(expansion[1], text)._repr_html_()
        assert "<script>" not in shown
        assert html.unescape(re.sub("<[^>]+>", "", shown)).replace("\u200d", "") == text
