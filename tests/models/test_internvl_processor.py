"""The processor of InternVL: what is set is saved, and read again."""

from __future__ import annotations

from pathlib import Path

from fixtures.images import picture

from mllm_tailor.core.io import read_json
from mllm_tailor.core.sample import Sample
from mllm_tailor.models import encode, load_model, save_model
from mllm_tailor.models.inputs.internvl_processor import set_tile, stated_tiles
from mllm_tailor.recipe.schema import Tiles


def test_a_saved_processor_is_read_again(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Other tiles, another size of them, no thumbnail, a system text, other words before frames."""
    model = load_model(tiny_model_folder, dtype="float32", device="cpu")
    processor = model.processor
    set_tile(processor, model.model.config, 84)
    processor.keep(Tiles(min=2, max=5, thumbnail=False), "Read the receipt.", reflow=True)
    processor.frame_text = "Image-{}: "
    model.tiles, model.system, model.reflow = stated_tiles(processor), processor.system, processor.reflow
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", dtype="float32", device="cpu")

    names = ("image_seq_length", "use_thumbnail", "reflow", "system", "frame_text", "chat_template", "image_token_id")
    for name in names:
        assert getattr(again.processor, name) == getattr(processor, name), name
    assert again.processor.image_seq_length == 9  # a tile of 84 pixels has 6x6 patches, joined 2x2
    assert (again.tiles, again.system, again.tile_size) == (model.tiles, "Read the receipt.", 84) and again.reflow
    assert again.processor.image_processor.to_dict() == processor.image_processor.to_dict()

    sample = Sample("1", (picture(200, 90),), "Total?", "9.00")
    first, second = encode(sample, model), encode(sample, again)
    assert first.ids.equal(second.ids)
    assert first.media["pixel_values"].equal(second.media["pixel_values"])

    save_model(again, tmp_path / "twice")
    for file in ("processor_config.json", "tokenizer.json"):
        assert read_json(tmp_path / "saved" / file) == read_json(tmp_path / "twice" / file)
