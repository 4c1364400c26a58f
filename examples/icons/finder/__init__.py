"""An icon finder: a static page that searches the icons of many sets in 27 languages, online and offline."""

from examples.icons.finder.building import FinderSpec, build_finder

__all__ = ["FinderSpec", "build_finder"]
