"""DVS-CIFAR10, also called CIFAR10-DVS: a DVS128 camera records moving images of CIFAR-10.

Its option `upright`: upright pictures, as in SpikingJelly and the authors' reader, or else the
pixels and polarity that the camera stored; see `formats/aedat2.py`.
"""

from functools import partial

from ..events import Recordings
from ..formats import aedat2
from ..samples import list_by_class, one_per_file
from ..source import EVENT_OPTIONS, Archive, File, Layout, Source

ARCHIVES = {  # class -> MD5 and number at figshare of its zip
    "airplane": ("0afd5c4bf9ae06af762a77b180354fdd", 7712788),
    "automobile": ("8438dfeba3bc970c94962d995b1b9bdd", 7712791),
    "bird": ("a9c207c91c55b9dc2002dc21c684d785", 7712794),
    "cat": ("52c63c677c2b15fa5146a8daf4d56687", 7712812),
    "deer": ("b6bf21f6c04d21ba4e23fc3e36c8a4a3", 7712815),
    "dog": ("f379ebdf6703d16e0a690782e62639c3", 7712818),
    "frog": ("cad6ed91214b1c7388a5f6ee56d08803", 7712842),
    "horse": ("e7cbbf77bec584ffbf913f00e682782a", 7712851),
    "ship": ("41c7bd7d6b251be82557c6cce9a7d5c9", 7712836),
    "truck": ("89f3922fd147d9aeff89e76a2b0b70a7", 7712839),
}
DVS_CIFAR10 = Source(
    name="dvs-cifar10",
    kind="events",
    samples=(8100, 900, 1000),
    num_classes=10,
    shape=(2, 128, 128),
    credit="H. Li, H. Liu, X. Ji, G. Li, L. Shi 2017, CC BY 4.0",
    licence="CC BY 4.0",
    home="https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671",
    read=Recordings(partial(list_by_class, "cifar10_{}_*.aedat"), one_per_file(aedat2.decode)),
    layouts=(
        Layout(
            ("DVS-CIFAR10", "CIFAR10DVS", "CIFAR10DVS/extract", "CIFAR10-DVS", ""),
            tuple(
                File(
                    category,
                    recordings=1000,
                    pattern="cifar10_*.aedat",
                    archive=Archive(
                        f"{category}.zip",
                        md5,
                        (f"https://ndownloader.figshare.com/files/{number}",),
                    ),
                )
                for category, (md5, number) in ARCHIVES.items()
            ),
        ),
    ),
    options={**EVENT_OPTIONS, "upright": True},
)
