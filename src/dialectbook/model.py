"""Models: the CPU twin, the hub's models, adapters, and exact parameter counts on the meta device."""

from pathlib import Path

from .files import UserError
from .hardware import PAD_TO, detect, has_bf16

ALLAM_7B = {"vocab_size": 64_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False}
LLAMA_31_8B = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
               "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}


def train_tokenizer(texts, vocab_size):
    """Return a byte-level BPE tokenizer with `vocab_size` tokens trained on the texts: lossless on any Unicode text.

    Special tokens are <s>, </s> and <pad>; like Llama's it puts <s> before every text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                   model_max_length=2048, clean_up_tokenization_spaces=False)


def build_twin(knobs, tokenizer):
    """Return a randomly initialised Llama of the twin's shape for this tokenizer (the architecture class of ALLaM-7B).

    Unlike ALLaM's, its input and output embeddings are tied: half the parameters, for a corpus a million times smaller.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(knobs.data_seed)
    size = knobs.twin_hidden_size
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=size, intermediate_size=size * 11_008 // 4096,
                         num_hidden_layers=knobs.twin_layers, num_attention_heads=knobs.twin_heads,
                         max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                         tie_word_embeddings=True, attn_implementation="eager")
    return LlamaForCausalLM(config)


def base_path(knobs, run):
    """Return where the base model is: the twin's folder (checked to be finished) or the hub id."""
    if knobs.base_model != "twin":
        return knobs.base_model
    if not (run.base / "recipe.json").is_file():
        raise UserError(f"{run.base} holds no finished model. Chapter 04_continued_pretraining makes it: run that one first.")
    return str(run.base)


def identity_of(knobs, run, experiment="", seed=0):
    """Return a text that changes when the model does, for recipes: of the adapter if the experiment is tuned, else of the base.

    A local folder counts by its files' sizes and times, a hub model by its revision.
    """
    if experiment and knobs.tune:
        return (run.experiment(experiment, seed) / "adapter" / "recipe.json").read_text(encoding="utf-8")
    path = base_path(knobs, run)
    if knobs.base_model == "twin":
        return (run.base / "recipe.json").read_text(encoding="utf-8")
    if Path(path).is_dir():
        return str(sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in Path(path).iterdir()))
    return f"{path}@{knobs.base_revision}"


def load_tokenizer(knobs, run):
    """Return the base model's tokenizer, ready for batched generation: padded on the left, with a pad token."""
    from transformers import AutoTokenizer

    path = base_path(knobs, run)
    tokenizer = from_hub(AutoTokenizer.from_pretrained, path, knobs.base_revision, "base_model",
                          trust_remote_code=knobs.trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as the released code does
    tokenizer.padding_side = "left"
    return tokenizer


def load_base(knobs, run):
    """Return the base model in the profile's precision, on the GPU if there is one; weights only as safetensors."""
    return load_model(knobs, base_path(knobs, run), 4 if knobs.quantization == "nf4" else 0)


def load_model(knobs, path, bits=0):
    """Return the model at a hub id or folder in the profile's precision; with `bits` 8 or 4 its linear layers are quantised.

    That is done by bitsandbytes, on a GPU as on a CPU: LLM.int8 or NF4. Embeddings, output head and norms keep the precision.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = detect().device
    options = {"dtype": getattr(torch, knobs.dtype), "trust_remote_code": knobs.trust_remote_code, "use_safetensors": True}
    options["attn_implementation"] = "sdpa" if device == "cuda" else "eager"  # eager is faster on a CPU at our lengths
    if bits:
        options["quantization_config"] = _bitsandbytes(bits, options["dtype"])
    if device == "cuda":
        options["device_map"] = {"": 0}
    model = from_hub(AutoModelForCausalLM.from_pretrained, path, knobs.base_revision, "base_model", **options)
    if bits == 4 and device == "cpu":
        for layer in model.modules():  # the fused kernel of some CPUs multiplies in bfloat16, whatever is asked, and takes few shapes
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
    return model


def load_tuned(knobs, run, experiment, seed):
    """Return the base with the experiment's adapter; a missing or unfinished adapter stops the run (never a fall-back)."""
    from peft import PeftModel

    folder = run.experiment(experiment, seed) / "adapter"
    if not (folder / "recipe.json").is_file():
        raise UserError(f"{folder} holds no finished adapter. Chapter 06_lora_sft makes it: run it with "
                        f"experiment = {experiment!r} and seed = {seed} first.")
    model = PeftModel.from_pretrained(load_base(knobs, run), str(folder))
    return model.eval()


def response_logp(model, tokenizer, prompts, responses, batch_size=8, bf16=True):
    """Return the log-likelihood (nats) of each response after its prompt, its end included, as an array.

    With `bf16` matrices are multiplied in bfloat16 where the machine does that fast, otherwise in the model's own precision.
    """
    import numpy as np
    import torch

    result, order = np.zeros(len(prompts)), sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    for start in range(0, len(prompts), batch_size):
        chosen = order[start:start + batch_size]
        lengths = [len(ids) for ids in tokenizer([prompts[i] for i in chosen])["input_ids"]]
        batch = tokenizer([prompts[i] + responses[i] + tokenizer.eos_token for i in chosen], return_tensors="pt", padding=True,
                          padding_side="right", pad_to_multiple_of=PAD_TO).to(model.device)
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16 and has_bf16()):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        targets, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:].clone()
        for row, length in enumerate(lengths):
            mask[row, :length - 1] = 0
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        result[chosen] = -(losses * mask).sum(1).cpu().numpy()
    return result


def encoder_of(knobs, run):
    """Return (folder, layer, name) of BERTScore's encoder: the base twin, a local folder, or a hub model at its pinned commit."""
    from huggingface_hub import snapshot_download

    model, layer = knobs.bertscore_model, knobs.bertscore_layer
    if model == "twin":
        return base_path(knobs, run), layer, "base-twin"
    if Path(model).is_dir():
        return model, layer, Path(model).name
    folder = from_hub(snapshot_download, model, knobs.bertscore_revision, "bertscore_model",
                      allow_patterns=["*.json", "*.txt", "*.safetensors"])  # bert-score itself takes no revision
    return folder, layer, f"{model}@{knobs.bertscore_revision[:7]}"


def lora_config(knobs):
    """Return PEFT's LoraConfig with the run's rank, alpha, dropout and target modules (paper, section IV-D)."""
    from peft import LoraConfig

    return LoraConfig(r=knobs.lora_r, lora_alpha=knobs.lora_alpha, lora_dropout=knobs.lora_dropout, bias="none",
                      target_modules=knobs.lora_targets, task_type="CAUSAL_LM")


def count_parameters(model):
    """Return (all, trainable) parameters of a model."""
    return (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in model.parameters() if p.requires_grad))


def count_with_lora(shape, **lora):
    """Return (base, all, trainable) parameter counts of a Llama of this shape with LoRA, on the meta device: no memory.

    `shape` are LlamaConfig's arguments, `lora` LoraConfig's.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape))
        base = count_parameters(model)[0]
        return (base, *count_parameters(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))))


def _bitsandbytes(bits, dtype):
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(f"weights in {bits} bits (the knobs quantization and quantise_bits) need the package bitsandbytes: "
                        "pip install bitsandbytes.") from None
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)


def from_hub(load, path, revision, knob, **options):
    """Return load(path, …) with the revision for hub ids; any failure becomes one sentence that names the knob."""
    from safetensors import SafetensorError  # a cut-off download

    local = Path(path).is_dir()
    if local and not (Path(path) / "config.json").is_file():
        raise UserError(f"{knob} = {path!r} is a folder without config.json; it must hold a model in the hub's format.")
    try:
        return load(path, **options) if local else load(path, revision=revision, **options)
    except (OSError, ValueError, SafetensorError) as error:
        text = f"{type(error).__name__} {error} {error.__cause__}".replace(str(path), "").replace(revision, "").lower()
        if "gated" in text or "401" in text or "403" in text:
            why = "the model is gated: accept its terms on its page and set HF_TOKEN in the environment"
        elif "trust_remote_code" in text:
            why = "it needs code of its own: read that code, then set the knob trust_remote_code to true"
        elif "safetensors" in text:
            why = "it has no safetensors weights, and other formats can run code when loaded"
        elif "connect" in text or "offline" in text or "resolve" in text or "internet" in text:
            why = "the hub cannot be reached from here; download the model elsewhere and give its folder"
        else:
            why = f"no such model, revision or format ({str(error).splitlines()[0][:160]})"
        raise UserError(f"{knob} = {path!r}{'' if local else f' at revision {revision!r}'} could not be loaded: {why}.") from None
