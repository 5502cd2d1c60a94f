"""Which files of a folder are a split: exactly those, whatever else lies beside them."""

import pytest

from fedresearch.data.files import find_parquet
from fedresearch.errors import InputError


def found(folder, split="train", subset=None):
    return [str(file.relative_to(folder)) for file in find_parquet(str(folder), split, subset)]


@pytest.fixture
def holding(tmp_path):
    """Return a function that makes a folder of files."""

    def holding_(*names, folder="files"):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
        return tmp_path / folder

    return holding_


@pytest.mark.parametrize(
    "names",
    [
        ["train.parquet"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["data/train-00000-of-00001-b42a775f407cee45.parquet"],
        ["default/train/0000.parquet", "default/train/0001.parquet"],
        ["train/part-a.parquet", "train/part-b.parquet"],
        ["train_0.parquet", "train_1.parquet"],
        ["plain_text/train-0.parquet"],
    ],
)
def test_layouts_of_the_hub(holding, names):
    others = ["test-0.parquet", "training.parquet", "train_extra-0.parquet", "trainer/0.parquet", "my-train.parquet"]
    hidden = [".cache/train-00000-of-00001.parquet", ".git/train/0.parquet", f".{names[0].replace('/', '_')}"]
    assert found(holding(*names, *others, *hidden)) == names


@pytest.mark.parametrize("name", ["m[1]", "q?m", "a*b", "{x}", "**", "train", ".hidden", "[!a]"])
def test_a_folders_name_is_no_pattern(holding, name):
    for other in ("m1", "qXm", "aXb", "x", "b"):
        holding("train-1.parquet", "test-1.parquet", folder=other)
    folder = holding("train-0.parquet", "test-0.parquet", folder=name)
    assert (found(folder), found(folder, "test")) == (["train-0.parquet"], ["test-0.parquet"])


def test_a_subset_is_chosen_by_its_folder(holding):
    folder = holding("small/train-0.parquet", "full/data/train-0.parquet", "small/test-0.parquet", "test/0.parquet")
    assert found(folder, subset="small") == ["small/train-0.parquet"]
    assert found(folder, subset="full") == ["full/data/train-0.parquet"]
    with pytest.raises(
        InputError, match=r"several sets of train files, in full/data, small; try dataset\.subset=small"
    ):
        found(folder)
    with pytest.raises(InputError, match=r"in ., small; try dataset\.subset=small"):
        found(folder, "test")
    with pytest.raises(
        InputError, match=r"in a folder tiny \(dataset\.subset\); its Parquet files are: full/data/train-0"
    ):
        found(folder, subset="tiny")


def test_the_question_names_a_folder_where_no_subset_distinguishes_them(holding):
    folder = holding("train.parquet", "train/0.parquet")
    with pytest.raises(
        InputError, match=r"holds train\*\.parquet and train/\*\.parquet in \., and both may be the split"
    ):
        found(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet"],
        ["train-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"],
        ["train.parquet", "train-00000-of-00001.parquet"],
        ["train.parquet", "train-0.parquet", "train-1.parquet"],
        ["train/0000-of-0003.parquet", "train/0002-of-0003.parquet"],
    ],
)
def test_parts_that_are_no_whole_set_are_refused(holding, names):
    with pytest.raises(InputError, match=r"must hold the parts of one set of train files, all of them and each once"):
        found(holding(*names))


def test_what_is_no_file_is_passed_over(holding, tmp_path):
    folder = holding("train-0.parquet")
    (folder / "train-1.parquet").mkdir()
    assert found(folder) == ["train-0.parquet"]
    with pytest.raises(InputError, match="which is not a folder"):
        found(folder / "train-0.parquet")
