from semaug.core.moments import ClassMoments as ClassMoments
from semaug.data.sets import Data as Data, load as load
from semaug.data.split import Split as Split
from semaug.methods.augmented import Augmented as Augmented
from semaug.methods.automix import AutoMix as AutoMix
from semaug.methods.comixup import CoMixup as CoMixup
from semaug.methods.diffaugment import DiffAugment as DiffAugment
from semaug.methods.gan import GAN as GAN, fit_gan as fit_gan
from semaug.methods.gvae import GVAE as GVAE, VAE as VAE, AutoEncoder as AutoEncoder, ConditionalVAE as ConditionalVAE
from semaug.methods.isda import ISDA as ISDA, ISDALoss as ISDALoss, isda_logits as isda_logits, isda_loss as isda_loss
from semaug.methods.learned import (
    FeatureAugmentation as FeatureAugmentation,
    FixedAugmentation as FixedAugmentation,
    TeachAugment as TeachAugment,
)
from semaug.methods.long_tail import LongTailed as LongTailed
from semaug.methods.metasaug import MetaSAug as MetaSAug
from semaug.methods.mixup import (
    CutMix as CutMix,
    Cutout as Cutout,
    ManifoldMixup as ManifoldMixup,
    MixStyle as MixStyle,
    Mixup as Mixup,
    ResizeMix as ResizeMix,
    SaliencyMix as SaliencyMix,
)
from semaug.methods.puzzlemix import PuzzleMix as PuzzleMix
from semaug.methods.sla import (
    SLA as SLA,
    DataAugmentation as DataAugmentation,
    LongTailedSLA as LongTailedSLA,
    MultiTask as MultiTask,
)
from semaug.methods.transforms import BatchTransform as BatchTransform, MixStyleLayer as MixStyleLayer
from semaug.networks import Network as Network
from semaug.training.loop import fit as fit, fit_together as fit_together, resolve_device as resolve_device
from semaug.training.objective import (
    Batch as Batch,
    CrossEntropy as CrossEntropy,
    Objective as Objective,
    Smoothed as Smoothed,
    Step as Step,
)
from semaug.training.recipe import Recipe as Recipe
from semaug.training.record import Record as Record

__version__: str
