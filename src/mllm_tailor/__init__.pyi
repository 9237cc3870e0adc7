from mllm_tailor.api import Run as Run
from mllm_tailor.api import check as check
from mllm_tailor.api import load_run as load_run
from mllm_tailor.api import score as score
from mllm_tailor.api import tune as tune
from mllm_tailor.core.errors import DataError as DataError
from mllm_tailor.core.errors import ModelError as ModelError
from mllm_tailor.core.errors import RecipeError as RecipeError
from mllm_tailor.core.errors import RunError as RunError
from mllm_tailor.core.errors import TailorError as TailorError
from mllm_tailor.core.sample import Prediction as Prediction
from mllm_tailor.recipe import Recipe as Recipe

__version__: str
