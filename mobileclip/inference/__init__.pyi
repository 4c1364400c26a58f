from .bulk_encoding import (
    Encoded as Encoded,
    ImageItem as ImageItem,
    ImageRead as ImageRead,
    Moment as Moment,
    encode_images as encode_images,
)
from .embedding import Embeddings as Embeddings, write_embeddings as write_embeddings
from .forms import by_length as by_length, prepared as prepared, prepared_tower as prepared_tower
from .identity import ModelIdentity as ModelIdentity
from .image_text_model import ImageTextModel as ImageTextModel, attribution as attribution
from .loading import (
    holds_weights as holds_weights,
    load as load,
    space_of as space_of,
    spec_known_by_name as spec_known_by_name,
)
from .optimizing import (
    Engine as Engine,
    Form as Form,
    OptimizationReport as OptimizationReport,
    OptimizedDualEncoder as OptimizedDualEncoder,
    OptimizedTower as OptimizedTower,
    TowerReport as TowerReport,
    Trial as Trial,
    optimize as optimize,
    optimize_tower as optimize_tower,
    processor as processor,
    select_backend as select_backend,
)
from .texts import ensemble_prompts as ensemble_prompts, fill_templates as fill_templates
