"""`python -P -m k8s.monitoring`: writes the rules and dashboards anew, from the repository's root."""

from k8s.monitoring.generated_files import generated_files

for path, content in generated_files().items():
    path.write_text(content, encoding="utf-8")
