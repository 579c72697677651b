"""Describe a pulled generation as an RO-Crate (https://w3id.org/ro/crate/1.2), for an archive.

    mlip-job pull -g 2 --dataset -o cu-gen-02
    python examples/ro_crate.py cu-gen-02 https://creativecommons.org/licenses/by/4.0/

writes cu-gen-02/ro-crate-metadata.json. Check python-ace's terms before you choose a licence.
"""

import hashlib
import json
import sys
from pathlib import Path

directory, licence = Path(sys.argv[1]), sys.argv[2]
metadata = directory / "ro-crate-metadata.json"
manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))


def entity(name, kind, **properties):
    return {"@id": name, "@type": kind, "name": name.strip("#")} | properties


def ids(entities):
    return [{"@id": one["@id"]} for one in entities]


def file(path):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    name = path.relative_to(directory).as_posix()
    return entity(name, "File", contentSize=str(path.stat().st_size), sha256=sha256)


def errors(side):
    for name, unit in (("energy_mev_per_atom", "meV/atom"), ("force_mev_per_angstrom", "meV/Å")):
        rmse = manifest["headline"][side][f"rmse_{name}"]
        yield entity(f"#{side}.rmse_{name}", "PropertyValue", value=rmse, unitText=unit)


paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != metadata)
files = [file(path) for path in paths]
versions = {name: one for name, one in manifest["environment"]["versions"].items() if one}
programs = [entity(f"#{name}", "SoftwareApplication", version=one, url=f"https://pypi.org/project/{name}/")
            for name, one in versions.items()]  # fmt: skip
settings = [entity(f"#training.{name}", "PropertyValue", value=json.dumps(one))
            for name, one in manifest["config"]["training"].items()]  # fmt: skip
figures = [*errors("train"), *errors("test")]
training = entity("#training", "CreateAction", startTime=manifest["started"],
                  endTime=manifest["ended"], instrument=ids(programs), object=ids(settings),
                  result=ids(files))  # fmt: skip
root = entity("./", "Dataset", datePublished=manifest["ended"][:10], license={"@id": licence},
              hasPart=ids(files), mentions=ids([training]), variableMeasured=ids(figures),
              description=f"An ACE potential for {', '.join(manifest['elements'])}")  # fmt: skip
root["name"] = f"Interatomic potential {manifest['family']}, generation {manifest['generation']}"
about = entity(metadata.name, "CreativeWork", about={"@id": "./"},
               conformsTo={"@id": "https://w3id.org/ro/crate/1.2"})  # fmt: skip
terms = entity(licence, "CreativeWork", description="Terms of data and potential")
graph = [about, root, terms, training, *programs, *settings, *figures, *files]
crate = {"@context": "https://w3id.org/ro/crate/1.2/context", "@graph": graph}
metadata.write_text(json.dumps(crate, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
