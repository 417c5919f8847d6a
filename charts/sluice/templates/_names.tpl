{{/* The one name of all of the operator's own objects. */}}
{{- define "sluice.name" -}}
sluice-operator
{{- end }}

{{/* Cluster-wide objects carry the release's namespace, so that two installations can share a cluster. */}}
{{- define "sluice.clusterName" -}}
{{ printf "sluice-operator-%s" .Release.Namespace | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: sluice
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "sluice.childLabels" -}}
app.kubernetes.io/name: sluice-publisher
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: publisher
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The signed repository. */}}
{{- define "sluice.releases" -}}
{{ .Values.releases.uri | default (printf "%s-releases" (trimSuffix "/" .Values.storage.uri)) }}
{{- end }}

{{/* The image of one component: include "sluice.image" (list $ "gateway"). */}}
{{- define "sluice.image" -}}
{{- $root := index . 0 }}
{{- $component := index . 1 }}
{{- $images := $root.Values.images }}
{{- if index $images $component }}
{{- index $images $component }}
{{- else }}
{{- $registry := required "images.registry is empty: set it to where the images are, such as europe-docker.pkg.dev/PROJECT/sluice" $images.registry }}
{{- printf "%s/sluice-%s:%s" $registry $component ($images.tag | default $root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{/* The price table as the operator reads it: one line, keys in order. */}}
{{- define "sluice.prices" -}}
{{ toJson .Values.prices }}
{{- end }}

{{/* Nothing reports home: the same switches as in sluice_contracts.telemetry. */}}
{{- define "sluice.quiet" -}}
- {name: DO_NOT_TRACK, value: "1"}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
{{- end }}
