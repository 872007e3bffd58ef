"""ImageNet (ILSVRC 2012). Its official validation set is the test set, as in the literature."""

from .. import picture_folder
from ..source import Archive, File, Layout, Source

IMAGENET = Source(
    name="imagenet",
    kind="images",
    samples=(1231167, 50000, 50000),
    num_classes=1000,
    shape=(3, 224, 224),
    credit="O. Russakovsky et al. 2015, for research only",
    home="https://www.image-net.org/challenges/LSVRC/2012",
    read=picture_folder.read,
    layouts=(
        Layout(
            ("ImageNet", "imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", ""),
            (
                File(
                    "train",
                    recordings=1281167,
                    pattern="*/*.JPEG",
                    archive=Archive("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
                ),
                File(
                    "val",
                    recordings=50000,
                    pattern="*/*.JPEG",
                    archive=Archive("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
                ),
            ),
        ),
    ),
    options={"size": None},
    count_classes=True,
)
