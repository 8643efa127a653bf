from semaug.core.moments import ClassMoments as ClassMoments
from semaug.data.sets import Data as Data
from semaug.data.sets import load as load
from semaug.data.split import Split as Split
from semaug.methods.augmented import Augmented as Augmented
from semaug.methods.automix import AutoMix as AutoMix
from semaug.methods.comixup import CoMixup as CoMixup
from semaug.methods.diffaugment import DiffAugment as DiffAugment
from semaug.methods.gan import GAN as GAN
from semaug.methods.gan import fit_gan as fit_gan
from semaug.methods.gvae import GVAE as GVAE
from semaug.methods.gvae import VAE as VAE
from semaug.methods.gvae import AutoEncoder as AutoEncoder
from semaug.methods.gvae import ConditionalVAE as ConditionalVAE
from semaug.methods.isda import ISDA as ISDA
from semaug.methods.isda import ISDALoss as ISDALoss
from semaug.methods.isda import isda_logits as isda_logits
from semaug.methods.isda import isda_loss as isda_loss
from semaug.methods.learned import (
    FeatureAugmentation as FeatureAugmentation,
)
from semaug.methods.learned import (
    FixedAugmentation as FixedAugmentation,
)
from semaug.methods.learned import (
    TeachAugment as TeachAugment,
)
from semaug.methods.long_tail import LongTailed as LongTailed
from semaug.methods.metasaug import MetaSAug as MetaSAug
from semaug.methods.mixup import (
    CutMix as CutMix,
)
from semaug.methods.mixup import (
    Cutout as Cutout,
)
from semaug.methods.mixup import (
    ManifoldMixup as ManifoldMixup,
)
from semaug.methods.mixup import (
    MixStyle as MixStyle,
)
from semaug.methods.mixup import (
    Mixup as Mixup,
)
from semaug.methods.mixup import (
    ResizeMix as ResizeMix,
)
from semaug.methods.mixup import (
    SaliencyMix as SaliencyMix,
)
from semaug.methods.puzzlemix import PuzzleMix as PuzzleMix
from semaug.methods.sla import (
    SLA as SLA,
)
from semaug.methods.sla import (
    DataAugmentation as DataAugmentation,
)
from semaug.methods.sla import (
    LongTailedSLA as LongTailedSLA,
)
from semaug.methods.sla import (
    MultiTask as MultiTask,
)
from semaug.methods.transforms import BatchTransform as BatchTransform
from semaug.networks import Network as Network
from semaug.training.loop import fit as fit
from semaug.training.loop import fit_together as fit_together
from semaug.training.loop import resolve_device as resolve_device
from semaug.training.objective import (
    Batch as Batch,
)
from semaug.training.objective import (
    CrossEntropy as CrossEntropy,
)
from semaug.training.objective import (
    Objective as Objective,
)
from semaug.training.objective import (
    Smoothed as Smoothed,
)
from semaug.training.objective import (
    Step as Step,
)
from semaug.training.recipe import Recipe as Recipe
from semaug.training.record import Record as Record

__version__: str
