"""Lists, MATLAB tables and pickles that are damaged or made to hurt: one line with the file's name, nothing written."""

import io
import pickle
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import picture, tree
from test_prepare import CAR_NAMES, cars_rows, cifar100, cub200, domainnet

from slca_fast.data.prepare import prepare
from slca_fast.data.prepare.inert_pickle import read_pickled_dict
from slca_fast.errors import DataError


def refused(data, source, message=None, **options):
    root = source.parent / "refused"
    with pytest.raises(DataError, match=message) as caught:
        prepare(data, source, root, check_counts=False, **options)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    assert not root.exists()


@pytest.mark.parametrize(
    "names",
    [
        (b"\xff\xfe", b"bear"),
        (b"a\0b", b"bear"),
        (b"\x1b[2J", b"bear"),
        (b"a/b", b"bear"),
        (b"/".join([b"a"] * 1000), b"bear"),
        (b"/apple", b"bear"),
        (b"..", b"bear"),
        (b".", b"bear"),
        (b"", b"bear"),
        (b" ", b"bear"),
        (b".x", b"bear"),
        (b"__MACOSX", b"bear"),
        (b"a" * 300, b"bear"),
        ("ü".encode() * 150, b"bear"),
        (b"bear", b"bear"),
        (b" bear", b"bear "),
        (("a",), b"bear"),
        (1, 2),
    ],
)
def test_class_names_of_cifar(tmp_path, names):
    cifar100(tmp_path / "c")
    (tmp_path / "c/meta").write_bytes(pickle.dumps({b"fine_label_names": list(names)}, protocol=2))
    refused("cifar100", tmp_path / "c", "/meta")


class Shaped:
    """An array of this shape and these bytes, whether they fit or not."""

    def __init__(self, shape, content):
        self.shape, self.content = shape, content

    def __reduce__(self):
        state = (1, self.shape, np.dtype("u1"), False, self.content)
        return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("shape", [None, (1,), ("a", 3072), (1.0, 3072), (-1, 3072), (True, 3072), (0, 3072), 3072])
@pytest.mark.parametrize("content", [b"", bytes(3072)])
def test_arrays_of_other_shapes(tmp_path, shape, content):
    cifar100(tmp_path / "c")
    values = {b"data": Shaped(shape, content), b"fine_labels": []}
    (tmp_path / "c/train").write_bytes(pickle.dumps(values, protocol=2))
    refused("cifar100", tmp_path / "c", "/train|0 train")


@pytest.mark.parametrize("label", [True, 10**30, -1, 2, 0.0, None, b"0"])
def test_labels_that_are_none(tmp_path, label):
    cifar100(tmp_path / "c")
    values = {b"data": Shaped((1, 3072), bytes(3072)), b"fine_labels": [label]}
    (tmp_path / "c/train").write_bytes(pickle.dumps(values, protocol=2))
    refused("cifar100", tmp_path / "c", "/train: labels and images do not fit")


def one_text_again_and_again(count=20_000, size=1 << 20):
    encode, text = b"c_codecs\nencode\nq\x00", b"X" + size.to_bytes(4, "little") + b"a" * size + b"q\x01"
    again = b"h\x00h\x01X\x06\0\0\0latin1\x86R"
    return b"\x80\x02" + encode + b"0" + text + b"0]" + b"(" + again * count + b"e."


HURTFUL = {
    "memo of 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "memo of 2^28": b"\x80\x02}r\xff\xff\xff\x0f.",
    "bytes of 2^40": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.",
    "bytearray of 2^40": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
    "frame of 2^60": b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b"}.",
    "huge integer": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "integer of many digits": b"I" + b"9" * 10_000 + b"\n.",
    "tuples in tuples as key": b"\x80\x02}" + b"(" * 2_000_000 + b"t" * 2_000_000 + b"K\x01s.",
    "tuples by the memo": b"\x80\x02})q\x00" + b"0h\x00\x85q\x00" * 100_000 + b"K\x01s.",
    "tuples by doubling": b"\x80\x02})" + b"2\x86" * 100_000 + b"K\x01s.",
    "one text again and again": one_text_again_and_again(),
    "recursive names": b"\x80\x02}U\x10fine_label_names]q\x00h\x00as.",
    "no dictionary": b"\x80\x02K\x01.",
    "key that is no text": pickle.dumps({(1, 2): 3}, protocol=2),
    "outside object": b"\x80\x02K\x01Q.",
}


@pytest.mark.parametrize("case", HURTFUL)
def test_pickles_made_to_hurt(tmp_path, case):
    cifar100(tmp_path / "c")
    (tmp_path / "c/meta").write_bytes(HURTFUL[case])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused("cifar100", tmp_path / "c", "/meta")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    names = [f"{i}.png" for i in range(3000)]
    values = {b"names": names, b"raw": [n.encode() for n in names]}
    if protocol < 5:  # NumPy pickles by other functions there
        values[b"data"] = np.zeros((2, 3), np.uint8)
    (tmp_path / "p").write_bytes(pickle.dumps(values, protocol=protocol))
    found = read_pickled_dict(tmp_path / "p")
    assert found["names"] == names and found["raw"] == values[b"raw"]
    assert protocol > 4 or found["data"].rows(3).tolist() == [[0] * 3] * 2


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_pickles_are_read_or_refused(tmp_path_factory, data):
    values = {b"data": np.zeros((2, 3), np.uint8), b"fine_labels": [0, 1], b"fine_label_names": [b"a", b"b"]}
    content = bytearray(pickle.dumps(values, protocol=2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("p") / "p"
    path.write_bytes(content)
    try:
        read_pickled_dict(path)
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)


FIELDS = ["relative_im_path", "class", "test"]
ROWS = [(f"car_ims/{i:06d}.jpg", 1 + i % 2, int(i >= 2)) for i in range(4)]


def cars(folder, table):
    from scipy.io import savemat

    for i in range(4):
        (folder / "car_ims").mkdir(parents=True, exist_ok=True)
        picture(20, 20, i).save(folder / f"car_ims/{i:06d}.jpg")
    savemat(folder / "cars_annos.mat", table)
    return folder


def with_field(position, value):
    return cars_rows(FIELDS, [(*row[:position], value, *row[position + 1 :]) for row in ROWS])


GOOD_CARS = {"annotations": cars_rows(FIELDS, ROWS), "class_names": CAR_NAMES}
BAD_CARS = {
    "no class_names": {"annotations": GOOD_CARS["annotations"]},
    "no annotations": {"class_names": CAR_NAMES},
    "annotations are numbers": {**GOOD_CARS, "annotations": np.arange(5)},
    "names are numbers": {**GOOD_CARS, "class_names": np.arange(5)},
    "no field test": {**GOOD_CARS, "annotations": cars_rows(FIELDS[:2], [row[:2] for row in ROWS])},
    "no field path": {**GOOD_CARS, "annotations": cars_rows(FIELDS[1:], [row[1:] for row in ROWS])},
    "path is a number": {**GOOD_CARS, "annotations": with_field(0, 7)},
    "path leads outside": {**GOOD_CARS, "annotations": with_field(0, "../x.jpg")},
    "class is text": {**GOOD_CARS, "annotations": with_field(1, "x")},
    "class is a list": {**GOOD_CARS, "annotations": with_field(1, np.array([1, 2]))},
    "class is no number": {**GOOD_CARS, "annotations": with_field(1, np.nan)},
    "class is a fraction": {**GOOD_CARS, "annotations": with_field(1, 1.5)},
    "class is too large": {**GOOD_CARS, "annotations": with_field(1, 3)},
    "test is text": {**GOOD_CARS, "annotations": with_field(2, "x")},
    "name is empty": {**GOOD_CARS, "class_names": np.array(["A", "a" * 300], dtype=object)},
}


@pytest.mark.parametrize("case", BAD_CARS)
def test_bad_tables_of_cars(tmp_path, case):
    refused("cars196", cars(tmp_path / "cars", BAD_CARS[case]))


@pytest.mark.thorough
def test_damaged_tables_of_cars(tmp_path):
    source = cars(tmp_path / "cars", GOOD_CARS)
    assert prepare("cars196", source, tmp_path / "good", check_counts=False).num_train == 2
    good, rng = (source / "cars_annos.mat").read_bytes(), np.random.default_rng(1)
    for trial in range(15):
        content = bytearray(good)
        for position in rng.integers(128 if trial else 0, len(content), 3):
            content[position] = rng.integers(256)
        (source / "cars_annos.mat").write_bytes(content)
        try:
            prepare("cars196", source, tmp_path / f"out{trial}", check_counts=False)
        except DataError as error:
            assert "\n" not in str(error) and not (tmp_path / f"out{trial}").exists()


@pytest.mark.parametrize(
    "line, message",
    [
        (b"\xff\xfe real/zebra/x.jpg 0", "no text in UTF-8"),
        (b"real/zebra/real_1_0.jpg " + b"9" * 5000, "line 1: expected"),
        ("real/zebra/real_1_0.jpg ²".encode(), "line 1: expected"),
        ("real/zebra/real_1_0.jpg ٣".encode(), "line 1: expected"),
        (b"real/zebra/real_1_0.jpg -1", "line 1: expected"),
        (b"real/zebra/real_1_0.jpg", "line 1: expected"),
        (b"real/zebra/real_1_0.jpg 0\nreal/zebra/real_1_1.jpg 1", "two classes of the name 'zebra'"),
        (b"real/zebra/gone.jpg 1", "is listed but not there"),
        (b"real/../real/x.jpg 1", "leads outside"),
        (b"real/z\0ebra/x.jpg 1", "leads outside"),
        (b"real/.zebra/x.jpg 1", "cannot be the name of a folder"),
        (b"real/" + b"z" * 300 + b"/x.jpg 1", "longer"),
        (b"", "0 train"),
    ],
)
def test_lists_of_domainnet(tmp_path, line, message):
    source = domainnet(tmp_path / "dn")
    (source / "real_train.txt").write_bytes(line + b"\n")
    refused("domainnet", source, message, domains=("real",))


def test_a_refused_domain_list_leaves_domains_json_alone(tmp_path):
    source = domainnet(tmp_path / "dn")
    prepare("domainnet", source, tmp_path / "out", domains=("real", "sketch"), check_counts=False)
    before = (tmp_path / "out/domains.json").read_text()
    with pytest.raises(DataError, match="already holds other images"):
        prepare("domainnet", source, tmp_path / "out", domains=("sketch",), check_counts=False)
    assert (tmp_path / "out/domains.json").read_text() == before


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("images.txt", b"1 a.jpg\n", "in no class folder|do not list the same"),
        ("images.txt", b"1 \xff/a.jpg\n", "no text in UTF-8"),
        ("images.txt", b"1 a b.jpg\n", "expected two words"),
        ("images.txt", b"1 a/b.jpg\n1 a/c.jpg\n", "lists an image twice"),
        ("train_test_split.txt", "1 ²\n".encode(), "do not list the same"),
    ],
)
def test_lists_of_cub(tmp_path, name, content, message):
    source = cub200(tmp_path)
    (source / name).write_bytes(content)
    refused("cub200", source, message)


def test_a_folder_where_a_list_should_be(tmp_path):
    (tmp_path / "c/images.txt").mkdir(parents=True)
    refused("cub200", tmp_path / "c", r"images\.txt is not a regular file")


def test_nothing_is_written_when_one_image_is_missing(tmp_path):
    source = cub200(tmp_path)
    victim = next(path for path in tree(source) if path.endswith(".jpg"))
    (source / victim).unlink()
    refused("cub200", source, "is listed but not there")


def test_the_memory_of_a_pickle_is_its_size(tmp_path):
    values = {b"data": np.zeros((3, 3072), np.uint8), b"filenames": [f"{i}.png".encode() for i in range(50_000)]}
    stream = io.BytesIO()
    pickle.dump(values, stream, protocol=2)
    (tmp_path / "p").write_bytes(stream.getvalue())
    assert len(read_pickled_dict(tmp_path / "p")["filenames"]) == 50_000
