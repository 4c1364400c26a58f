"""Small data sets of choices in their published files, all in one folder, and a model that knows colours."""

import csv
import io
import json
import zipfile

from mobileclip.evaluation import TaskOptions, find_task
from tests.evaluation.models import COLOURS, image_of, session_of
from tests.evaluation.tasks.test_evaluate import encoded

SHAREGPT4V = "share-captioner_coco_lcs_sam_1246k_1107.json"
LEFT, RIGHT = (0, 0, 10, 10), (10, 0, 10, 10)
SHADES = {
    "dark red": (0.5, 0.0, 0.0), "light red": (1.0, 0.2, 0.2), "green": (0.0, 0.8, 0.0), "pale green": (0.4, 1.0, 0.4),
    "blue": (0.0, 0.0, 1.0), "sky": (0.4, 0.6, 1.0), "yellow": (1.0, 1.0, 0.0), "gold": (0.9, 0.7, 0.1),
    "black": (0.1, 0.1, 0.1), "grey": (0.5, 0.5, 0.5), "pink": (1.0, 0.6, 0.7), "sea": (0.0, 0.4, 0.5),
}  # fmt: skip
NAMES = tuple(SHADES)
INSTANCES = (
    ("red", NAMES[:5], ("dark red", "light red")),
    ("Green", NAMES[:6], ("green", "sky", "blue")),
    ("blue", NAMES[:10], ("sky", "black")),
    ("yellow", NAMES, ("gold", "yellow", "pink")),
    ("red yellow", NAMES[2:], ("gold", "pink")),
    ("blue green", NAMES[1:], ("sea", "sky")),
    ("yellow", NAMES[7:], ("sea",)),
)
CAPTIONS = {
    "red": ["A red man rides a small moped near two dogs.", "Snow", "a kite", "Two people in red hats, one is old!"],
    "green": ["Two brown dogs run through the tall green grass by an old wooden fence.", "a green hill , a field"],
    "blue": ["The woman's blue cat can't reach the highest shelf.", "a bowl of soup", "the blue bus stops here"],
}
ORDER_FILES = {"coco": ("coco_karpathy_test.json", "val2014"), "flickr30k": ("flickr30k_test.json", "flickr30k-images")}


def opened(key, data, **options):
    return find_task(key, str(data)).open(TaskOptions(**options))


def evaluated(key, data, session=None, **options):
    return opened(key, data, **options).evaluate(session or session_of(batch_size=3))


def write(root, files):
    """Write files by name: bytes, text, or what becomes JSON."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def halves(left, right):
    """A picture of two colours side by side."""
    picture, stream = image_of(left, 20), io.BytesIO()
    picture.paste(image_of(right, 20), (10, 0))
    picture.save(stream, "PNG")
    return stream.getvalue()


def pair(image, box, true, false, **group):
    left, top, width, height = box
    box = {"bbox_x": left, "bbox_y": top, "bbox_w": width, "bbox_h": height}
    return {"image_path": image, **box, "true_caption": true, "false_caption": false, **group}


RELATIONS = [
    pair("a.png", LEFT, "red thing", "blue thing", relation_name="on"),
    pair("a.png", RIGHT, "blue thing", "red thing", relation_name="on"),
    pair("a.png", RIGHT, "red thing", "blue thing", relation_name="on"),  # wrong
    pair("b.png", LEFT, "green thing", "yellow thing", relation_name="under"),
    pair("b.png", RIGHT, "green thing", "yellow thing", relation_name="under"),  # wrong
    pair("b.png", LEFT, "a green thing", "thing, green", relation_name="under"),  # one text to the model: wrong
    pair("b.png", LEFT, "yellow thing", "green thing", relation_name="next to"),  # wrong, and does not count
]


def write_genome(data, entries, name="relation", **images):
    images = {f"images/{image}.png": content for image, content in images.items()}
    write(data / "aro", {f"visual_genome_{name}.json": entries, **images})


def order_picture(name):
    return encoded(COLOURS[name], size=(40, 50), noise=90, seed=list(CAPTIONS).index(name))


def other_orders(caption):
    """Four other orders of a caption: words turned round, turned in pairs, rotated by one and by two."""
    words = caption.split()
    pairs = [word for start in range(0, len(words), 2) for word in reversed(words[start : start + 2])]
    return [" ".join(one) for one in (words[::-1], pairs, words[1:] + words[:1], words[2:] + words[:2])]


def orders_of(captions, tagger="by hand"):
    """The lines of a file of orders."""
    lines = [{"tagger": tagger}, *({"caption": one, "orders": other_orders(one)} for one in captions)]
    return "\n".join(map(json.dumps, lines))


def write_order(data, part="coco"):
    file, folder = ORDER_FILES[part]
    pictures = {f"{folder}/{name}.png": order_picture(name) for name in CAPTIONS}
    entries = [{"image": f"{folder}/{name}.png", "caption": texts} for name, texts in CAPTIONS.items()]
    orders = orders_of([one for texts in CAPTIONS.values() for one in texts])
    return write(data / "aro", {file: entries, f"{part}_order.jsonl": orders, **pictures})


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def instances_table(instances):
    """The table of (cue, candidates, associations), as it is published."""
    stream = io.StringIO(newline="")
    rows = [(100 + place, json.dumps(one[1]), one[0], json.dumps(one[2]), 67) for place, one in enumerate(instances)]
    csv.writer(stream).writerows([("ID", "candidates", "cue", "associations", "score_fool_the_ai"), *rows])
    return stream.getvalue()


def instance_pictures(pictures):
    beside = {"winogavil_images/": "", "__MACOSX/winogavil_images/._green.jpg": b"attributes"}
    return zipped(beside | {f"winogavil_images/{name}.jpg": content for name, content in pictures.items()})


def shared(number, name):
    said = [{"from": "human", "value": "What do you see?"}, {"from": "gpt", "value": f"It is\n{name}."}]
    return {"id": str(number), "image": f"sam/images/sa_{number}.jpg", "conversations": said}


def write_all(data):
    """Write every data set."""
    write_genome(data, RELATIONS, a=halves("red", "blue"), b=halves("green", "yellow"))
    crepe = (
        ("1.jpg", "a red thing", "a blue thing"),
        ("2.jpg", "a green thing", "a red thing"),
        ("2.jpg", "green", "not blue, not yellow"),
        ("3.jpg", "a red thing", "a blue thing"),  # wrong
        ("3.jpg", "blue and green", "green and blue"),  # one text to the model: wrong
    )
    cases = [{"filename": file, "caption": true, "negative_caption": false} for file, true, false in crepe]
    pictures = {f"val2017/{number}.jpg": encoded(colour) for number, colour in enumerate(COLOURS.values(), 1)}
    write(data / "sugarcrepe", {"swap_att.json": dict(zip("01234", cases, strict=True)), **pictures})
    ground = (  # all right; all wrong; and one picture twice with one text twice, which nothing can tell apart
        ("red", "blue", "ex_0_img_0", "ex_0_img_1"),
        ("green", "red", "ex_1_img_0", "ex_1_img_1"),
        ("red", "a red", "ex_0_img_0", "ex_1_img_0"),
    )
    lines = [dict(zip(("caption_0", "caption_1", "image_0", "image_1"), one, strict=True)) for one in ground]
    colours = {"ex_0_img_0": "red", "ex_0_img_1": "blue", "ex_1_img_0": "red", "ex_1_img_1": "green"}
    pictures = {f"images/{name}.png": encoded(COLOURS[colour]) for name, colour in colours.items()}
    write(data / "winoground", {"examples.jsonl": "\n".join(map(json.dumps, lines)), "images.zip": zipped(pictures)})
    packed = instance_pictures({name: encoded(shade) for name, shade in SHADES.items()})
    table = instances_table(INSTANCES)
    write(data / "winogavil", {"winogavil_dataset.csv": table, "winogavil_images.zip": packed})
    # The captions of blue and yellow are each other's; what stands in a second line is not read.
    for number, (name, other) in enumerate(zip(COLOURS, ("red", "green", "yellow", "blue"), strict=True)):
        picture, caption = encoded(COLOURS[name]), f"A long text about something {other}.\nand {name}"
        write(data / "urban1k", {f"image/{number + 1}.jpg": picture, f"caption/{number + 1}.txt": caption})
        write(data / "sharegpt4v", {f"sam/images/sa_{number}.jpg": picture})
    write(data / "sharegpt4v", {SHAREGPT4V: [shared(number, name) for number, name in enumerate(COLOURS)]})
    return data
