"""The item LLM: a language model of Hugging Face that turns the text of an item into one vector.

A text is followed by one more position, ``[ITEM]``; what the last layer says there is the item's
state (Yuan 2025, arXiv 2504.07398, item model; the construction is that of HLLM, arXiv 2409.12740).
``[ITEM]`` is a vector of its own beside the token embeddings, so the model and its tokenizer stay
what they are, and a text cannot contain it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from recbole_hydra.checks import boolean, one_of, positive_int, positive_number, probability
from recbole_hydra.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self

logger = logging.getLogger(__name__)

#: Tokens that go through the model together, padding included: as many as a CPU's caches hold the
#: activations of (MiniLM on a 2-core EPYC: 8,192 take 1.6 times as long to train), more on a GPU.
CHUNK_TOKENS = {"cpu": 2**11, "cuda": 2**13}

#: Up to this many tokens per text, a CPU computes bfloat16 attention by plain matrix products: its
#: fused kernel's backward pass takes half of all the time then (36 ms a layer, otherwise 3).
PLAIN_ATTENTION = 512

#: In the key of every file of the cache: it rises when the states of a text would be others.
CACHE_VERSION = 1

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
_MISSING = "{} is not installed, which {} needs: pip install 'recbole-hydra[llm]'"


def find_llm(name: str) -> Path:
    """Return the folder of a model: ``name`` itself, or where Hugging Face's hub has put it.

    Raises:
        ConfigError: transformers is not installed; there is no such model; the folder lacks a
            config, weights or tokenizer.
    """
    if not name:
        raise ConfigError("item_llm: not set; item_encoder text needs a folder or name of a model")
    try:
        import huggingface_hub
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(_MISSING.format(error.name, "item_encoder text")) from error
    folder = Path(name).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(huggingface_hub.snapshot_download(name))
        except (OSError, ValueError) as error:  # offline, no such repository, not a name
            line = " ".join(str(error).split())[:150]
            raise ConfigError(
                f"item_llm: {name} is no folder, and no model of that name could be fetched "
                f"({line})"
            ) from error
    for what, patterns in (
        ("config.json", ("config.json",)),
        ("weights (*.safetensors)", _WEIGHTS),
        ("tokenizer (tokenizer.json)", _TOKENIZERS),
    ):
        if not any(next(folder.glob(pattern), None) for pattern in patterns):
            raise ConfigError(
                f"item_llm: {folder} has no {what}; save the model and its tokenizer there with "
                "save_pretrained"
            )
    return folder


def hash_llm(folder: str | Path) -> str:
    """A hash of what decides a model's states: its config, tokenizer and weights."""
    digest = hashlib.sha256()
    names = ("config.json", *_TOKENIZERS, "merges.txt", "tokenizer_config.json", *_WEIGHTS)
    for path in sorted({path for name in names for path in Path(folder).glob(name)}):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()[:32]


class ItemLLM(nn.Module):
    """Maps items to the language model's state at ``[ITEM]`` behind their texts.

    Args:
        folder: of :func:`find_llm`.
        max_tokens: most tokens of a text, ``[ITEM]`` included; the model's own limit goes over it.
        training: "frozen", "lora" (Hu et al. 2021, arXiv 2106.09685, through peft), or "full".
            ``[ITEM]`` is trained with the last two.
        lora: ``rank``, ``alpha``, ``dropout`` and ``target_modules`` (as peft takes them), for
            "lora" only.
        gradient_checkpointing: while training, keep nothing of a chunk of texts but its states, and
            compute it once more in the backward pass: a third more time, a fraction of the memory.
        device: the LLM is loaded there. It computes in bfloat16 on a GPU that has it, and where it
            is trained, on a CPU that has it (AVX512-BF16, AMX), too; a frozen one is read once, so
            that a CPU takes the time for float32. Its weights are float32 when trained in full.

    Raises:
        ConfigError: a value out of range, a folder that transformers cannot load, or peft missing.
    """

    def __init__(
        self,
        folder: str | Path,
        max_tokens: int | None = None,
        training: str = "frozen",
        lora: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        one_of("llm_training", training, ("frozen", "lora", "full"))
        self.gradient_checkpointing = boolean("llm_gradient_checkpointing", gradient_checkpointing)
        llm, self.tokenizer = _load(folder)
        self.limit = self._limit(llm.config, max_tokens)
        self.low = _has_bfloat16(device) and (training != "frozen" or _type(device) != "cpu")
        dtype = torch.bfloat16 if self.low and training != "full" else torch.float32
        cast(nn.Module, llm).to(device, dtype)
        llm.requires_grad_(training == "full")
        self.item_token = nn.Parameter(self._first_item_token(llm), training != "frozen")
        self.width = self.item_token.shape[0]
        self.llm = _with_lora(llm, **cast("dict[str, Any]", lora)) if training == "lora" else llm
        if training == "frozen":
            self.eval()
        self.tokens: list[np.ndarray] = []

    @staticmethod
    def _limit(config: Any, max_tokens: int | None) -> int:
        own = getattr(config, "max_position_embeddings", None) or 2**31
        if max_tokens is None:
            return own
        if positive_int("item_text_length", max_tokens) < 2:
            raise ConfigError("item_text_length must be at least 2: a token, and [ITEM]")
        return min(own, max_tokens)

    def _first_item_token(self, llm: PreTrainedModel) -> Tensor:
        """What ``[ITEM]`` is before any training: a copy of the token that sums up a text.

        That is [CLS] where there is one, otherwise the end of a text. Of those tried on MiniLM,
        [CLS] kept most of what the mean over all positions says (benchmarks/item_token.py).
        """
        embeddings = cast(Tensor, llm.get_input_embeddings().weight).detach().float()
        for name in ("cls_token_id", "eos_token_id", "sep_token_id"):
            if (token := getattr(self.tokenizer, name, None)) is not None:
                return embeddings[token].clone()
        return embeddings.mean(0)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as torch's, but leave the LLM without its own dropout; LoRA's is kept.

        States of items differ little beside their length, so that the noise of the LLM's dropout
        hides what they say: at its 0.1, the loss of a model trained on MiniLM's states rose from
        6.3 to 7.4 (amazon-office).
        """
        super().train(mode)
        self.llm.eval()
        for name, module in self.llm.named_modules():
            if "lora_dropout" in name:
                module.train(mode)
        return self

    def tokenise(self, sentences: Sequence[str], show_progress: bool = False) -> None:
        """Tokenise the text of every item, once; item i is ``sentences[i]``.

        Texts beyond the limit lose their end; how many do is logged.
        """
        from tqdm import trange

        most = min(self.limit, self.tokenizer.model_max_length) - 1  # [ITEM] comes behind them
        longest, cut = 0, 0
        begins = trange(0, len(sentences), 4096, desc="Tokenise items", disable=not show_progress)
        for begin in begins:
            encoded = self.tokenizer(sentences[begin : begin + 4096], verbose=False)["input_ids"]
            lengths = [len(tokens) for tokens in encoded]
            longest, cut = max(longest, *lengths), cut + sum(n > most for n in lengths)
            self.tokens += [np.array(tokens[:most], dtype=np.int32) for tokens in encoded]
        if cut:
            logger.warning(
                f"item text: {cut:,} of {len(sentences):,} texts are longer than {most} tokens and "
                f"were cut there (the longest has {longest:,}); see item_text_length"
            )

    def forward(self, ids: Tensor, show_progress: bool = False) -> Tensor:
        """Return the states of items, (items, width), float32.

        Args:
            ids: (items,); each is encoded, so they should be distinct.
        """
        from tqdm import tqdm

        texts = [self.tokens[i] for i in ids.tolist()]
        lengths = np.array([len(text) for text in texts])
        order = np.argsort(lengths, kind="stable")
        most = CHUNK_TOKENS.get(_type(self.item_token.device), CHUNK_TOKENS["cuda"])
        chunks, begin = [], 0
        while begin < len(order):  # as many as fit, padded to the longest, which is the last
            end = begin + 1
            while end < len(order) and (end + 1 - begin) * (lengths[order[end]] + 1) <= most:
                end += 1
            chunks.append([texts[i] for i in order[begin:end]])
            begin = end
        states = []
        with tqdm(total=len(texts), desc="Encode items", disable=not show_progress) as bar:
            for chunk in chunks:
                states.append(self._encode(chunk))
                bar.update(len(chunk))
        inverse = torch.from_numpy(np.argsort(order)).to(self.item_token.device)
        return torch.cat(states)[inverse]

    def _encode(self, texts: Sequence[np.ndarray]) -> Tensor:
        """States of a few texts, (texts, width)."""
        device = self.item_token.device
        lengths = torch.tensor([len(text) for text in texts], device=device)
        tokens = torch.zeros(len(texts), int(lengths.max()) + 1, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = torch.from_numpy(text)
        tokens = tokens.to(device)
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._states, tokens, lengths, use_reentrant=False)
        return self._states(tokens, lengths)

    def _states(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """States at ``[ITEM]``, which is at position ``lengths`` of each row of ``tokens``."""
        rows = torch.arange(len(tokens), device=tokens.device)
        embedded = cast("PreTrainedModel", self.llm).get_input_embeddings()(tokens)
        embedded = embedded.index_put((rows, lengths), self.item_token.to(embedded.dtype))
        mask = torch.arange(tokens.shape[1], device=tokens.device) <= lengths[:, None]
        plain: contextlib.AbstractContextManager = contextlib.nullcontext()
        if self.low and tokens.device.type == "cpu" and tokens.shape[1] <= PLAIN_ATTENTION:
            plain = sdpa_kernel(SDPBackend.MATH)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.low), plain:
            output = self.llm(inputs_embeds=embedded, attention_mask=mask.long())
        return output.last_hidden_state[rows, lengths].float()


def _load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model without a head, an encoder alone where there is one too, and the tokenizer."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        llm, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"item_llm: {folder} cannot be loaded ({line})") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    return llm.get_encoder() if llm.config.is_encoder_decoder else llm, tokenizer


def _type(device: str | torch.device) -> str:
    return torch.device(device).type


def _has_bfloat16(device: str | torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32."""
    if _type(device) == "cpu":  # an older torch does not say
        has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return _type(device) == "cuda" and torch.cuda.is_bf16_supported()


def _with_lora(
    llm: PreTrainedModel, rank: Any, alpha: Any, dropout: Any, target_modules: Any
) -> PeftModel:
    positive_int("lora_rank", rank)
    positive_number("lora_alpha", alpha)
    probability("lora_dropout", dropout)
    try:
        import peft
    except ImportError as error:
        raise ConfigError(_MISSING.format("peft", "llm_training lora")) from error
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules,
        # A pooler, as BERT has one, comes after the last layer's states.
        exclude_modules=[name for name, _ in llm.named_modules() if name.startswith("pooler")],
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's own, about transformers
            return peft.get_peft_model(llm, settings)
    except ValueError as error:
        raise ConfigError(f"lora_target_modules: {' '.join(str(error).split())}") from error


@torch.no_grad()
def frozen_states(
    folder: str | Path,
    sentences: Sequence[str],
    max_tokens: int | None = None,
    device: str | torch.device = "cpu",
    cache: str | Path | None = None,
    progress: bool = False,
) -> Tensor:
    """States of items whose language model is not trained: computed once, then read from a file.

    Args:
        folder, max_tokens, device: as :class:`ItemLLM` takes them.
        sentences: one text per item.
        cache: folder of the files; ``~/.cache/recbole_hydra/item_llm`` by default. A file belongs
            to one model, one limit and one list of texts, their prompt included.
        progress: show bars.

    Returns:
        (items, width), float32, on the CPU.
    """
    digest = hashlib.sha256(f"{CACHE_VERSION} {max_tokens} {hash_llm(folder)}".encode())
    for sentence in sentences:
        digest.update(sentence.encode() + b"\0")
    if cache is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        cache = root / "recbole_hydra" / "item_llm"
    path = Path(cache).expanduser() / f"{digest.hexdigest()[:32]}.pt"
    if path.is_file():
        try:
            states = torch.load(path, weights_only=True)
            if len(states) == len(sentences):
                logger.info(f"item LLM: states of {len(states):,} items read from {path}")
                return states
        except Exception as error:  # torch raises by damage; the states can be computed again
            logger.warning(f"item LLM: {path} is damaged ({type(error).__name__}): computed anew")
    with torch.random.fork_rng():  # what is loaded draws random numbers on its way
        llm = ItemLLM(folder, max_tokens, device=device)
        llm.tokenise(sentences, progress)
        states = llm(torch.arange(len(sentences)), progress).cpu()
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(states, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        line = " ".join(str(error).split())
        logger.warning(f"item LLM: the states are not kept, {path} cannot be written ({line})")
    return states
