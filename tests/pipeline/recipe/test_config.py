import pytest

from pipeline.errors import RecipeError
from pipeline.recipe.config import built_in_recipes, load_recipe, recipe_toml


@pytest.mark.parametrize("name", ["demo", "pandaset", "nuscenes", "ddad", "rig"])
def test_built_in_recipes_load_and_survive_being_written_down(tmp_path, name):
    recipe = load_recipe(name)
    (tmp_path / "again.toml").write_text(recipe_toml(recipe))
    assert load_recipe(str(tmp_path / "again.toml")) == recipe
    assert name in built_in_recipes()


def test_protocol_sizes_of_the_designs_table():
    sizes = {name: (load_recipe(name).student.input_size, load_recipe(name).teacher_cache.input_size)
             for name in ("ddad", "nuscenes", "pandaset", "demo")}  # fmt: skip
    assert sizes == {
        "ddad": ((384, 640), (392, 630)),
        "nuscenes": ((352, 640), (392, 700)),
        "pandaset": ((352, 640), (392, 700)),
        "demo": ((96, 160), (392, 644)),
    }


def test_overrides_reach_their_key_with_their_type():
    overrides = ("train_student.steps=7", "losses.kl=1", 'data.train=["a", "b[:3]"]', "student.encoder=resnet-34", "student.pretrained=false", "bins.sigma=0.5")  # fmt: skip # noqa: E501
    recipe = load_recipe("demo", overrides)
    assert recipe.train_student.steps == 7
    assert recipe.losses.kl == 1.0
    assert recipe.data.train == ("a", "b[:3]")
    assert (recipe.student.encoder, recipe.bins.sigma) == ("resnet-34", 0.5)


def test_a_limited_split_is_named_so():
    recipe = load_recipe("demo", ("data.limit_scenes=2", "data.limit_frames=9"))
    assert recipe.data.named(("a", "b[:3]")) == "a, b[:3] (first 2 scenes, 9 frames)"
    assert load_recipe("demo").data.named(("a",)) == "a"


def test_nano_may_be_pretrained_since_it_starts_from_resnet_18():
    assert load_recipe("demo", ("student.encoder=resnet-10",)).student.pretrained


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.encodr=x", "no key 'encodr'; did you mean 'encoder'"),
        ("studnt.encoder=x", "no key 'studnt'; did you mean 'student'"),
        ("train_student.steps=true", r"demo.toml\[train_student\]\[steps\]: expected a whole number, got True"),
        ("train_student.steps=1.5", "expected a whole number, got 1.5"),
        ("train_student.steps=0", "steps: expected at least 1, got 0"),
        ("train_student.learning_rate=nan", "learning_rate: expected a positive number, got nan"),
        ("train_student.weight_decay=inf", "weight_decay: expected 0 or more"),
        ("train_student.precision=fp8", "precision: expected one of auto, fp32, bf16"),
        ("train_student.device=tpu", "device: expected one of auto, cpu, cuda"),
        ("teacher_cache.precision=int8", "precision: expected one of"),
        ("eval.device=abacus", "device: expected one of"),
        ("student.input_size=[96, 161]", "positive multiples of 32, got .96, 161."),
        ("student.input_size=[96]", "expected 2 values"),
        ("student.input_size=96", "expected a list, got 96"),
        ("student.near_m=500", "expected 0 < near_m < far_m"),
        ("student.focal_px=-1", "focal_px: expected a positive number of pixels"),
        ("student.encoder=resnet-34", "no pretrained weights are known for resnet-34; set pretrained = false"),
        (
            "student.encoder=convnextv2-atto",
            "no pretrained weights are known for convnextv2-atto; set pretrained = false",
        ),
        ("student.encoder=vgg", "encoder: expected one of resnet-10, resnet-18, resnet-34, efficientnet-lite0"),
        ("bins.count=1", "count: expected 2 to 256 bins, got 1"),
        ("bins.window=100", "window: expected 1 to count = 64, got 100"),
        ("bins.prob_stride=3", "prob_stride: expected 2 or 4, got 3"),
        ("bins.sigma=-1", "sigma: expected a positive number"),
        ("losses.kl=-0.1", "kl: expected a weight >= 0, got -0.1"),
        ("data.depth_range_m=[5, 1]", "depth_range_m: expected 0 < near < far"),
        ("data.limit_frames=-1", "limit_scenes, limit_frames: expected 0 or more, got 0, -1"),
        ("data.lidar=backward", "lidar: expected one of mechanical, forward, both, got 'backward'"),
        ("data.nearby_sweep_s=-1", "nearby_sweep_s: expected 0 or more seconds, got -1"),
        ("data.train=[]", "at least one selector each"),
        ("data.train=3", "expected a list, got 3"),
        ("data.train=[1]", "expected a string, got 1"),
        ("data=3", "expected a table, got 3"),
        ("eval.protocol=mine", "protocol: expected one of surrounddepth, vfdepth, fsm, zero-shot, got 'mine'"),
        ("eval.pictures=-1", "pictures: expected 0 or more"),
        ("teacher_cache.shard_frames=0", "shard_frames: expected at least 1"),
        ("noequals", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("data.source.x=3", "source is not a section"),
    ],
)
def test_what_is_unknown_or_impossible_is_named(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("demo", (override,))


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "r.toml").write_text('[data]\nsource = "synthetic"\ntrain = ["a"]\n')
    with pytest.raises(RecipeError, match=r"r.toml\[data\]: missing .*'test'"):
        load_recipe(str(tmp_path / "r.toml"))


@pytest.mark.parametrize("content", [b"= =", b"\xff\xfe", b"[data\n"])
def test_what_is_not_toml_is_named(tmp_path, content):
    (tmp_path / "r.toml").write_bytes(content)
    with pytest.raises(RecipeError, match="r.toml: not valid TOML"):
        load_recipe(str(tmp_path / "r.toml"))


def test_an_unknown_recipe_lists_the_built_in_ones():
    built_in = "ddad, demo, evidence, evidence_pandaset, nuscenes, pandaset, rig"
    with pytest.raises(RecipeError, match=f"built-in ones are {built_in}"):
        load_recipe("kitti")


def test_the_data_folder_is_relative_to_the_recipe_and_the_flag_wins(tmp_path):
    text = recipe_toml(load_recipe("pandaset", ['data.root="here"']))
    assert load_recipe("pandaset", data=tmp_path).data.root == str(tmp_path)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text.replace(str(load_recipe("pandaset", ['data.root="here"']).data.root), "sub/drives"))
    assert load_recipe(str(recipe)).data.root == str(tmp_path / "sub/drives")
    assert load_recipe(str(recipe), data=tmp_path / "other").data.root == str(tmp_path / "other")


def test_the_folder_of_masks_is_relative_to_the_recipe(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(recipe_toml(load_recipe("ddad", ["data.masks=/m"])).replace('"/m"', '"../m"'))
    assert load_recipe(str(recipe)).data.masks == str(tmp_path.parent / "m")
    assert load_recipe("ddad").data.masks == ""


def test_lists_and_folders_are_relative_to_the_recipe_and_those_of_the_command_line_to_where_it_is_given(
    tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = recipe_toml(load_recipe("ddad", ["data.root=r", "data.masks=m", 'data.train=["list:/t.txt[:3]", "val"]']))
    for key, name in (("root", "r"), ("masks", "m")):
        assert f'{key} = "{tmp_path}/here/{name}"' in text
        text = text.replace(f'"{tmp_path}/here/{name}"', f'"{name}"')
    recipe = tmp_path / "mine.toml"
    recipe.write_text(text.replace("list:/t.txt", "list:t.txt"))
    data = load_recipe(str(recipe)).data
    assert (data.root, data.masks, data.train) == (
        f"{tmp_path}/r",
        f"{tmp_path}/m",
        (f"list:{tmp_path}/t.txt[:3]", "val"),
    )
    data = load_recipe(str(recipe), ["data.masks=m2", 'data.test=["list:t.txt"]']).data
    assert (data.root, data.masks) == (f"{tmp_path}/r", f"{tmp_path}/here/m2")
    assert (data.train[0], data.test) == (f"list:{tmp_path}/t.txt[:3]", (f"list:{tmp_path}/here/t.txt",))
    assert data.named(data.test) == "list:t.txt"
