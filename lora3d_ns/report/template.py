"""The page. Jinja escapes everything that is put in; no script, and nothing is fetched from anywhere."""

TEMPLATE = """\
{%- macro svg(drawing, style="chart") -%}
<svg class="{{ style }}" viewBox="0 0 {{ drawing.width }} {{ drawing.height }}" role="img"
 aria-label="{{ drawing.label }}">
{%- for s in drawing.shapes -%}
<{{ s.tag }}{{ s.attributes|xmlattr }}>
{%- if s.title %}<title>{{ s.title }}</title>{% endif %}{{ s.text }}</{{ s.tag }}>
{%- endfor -%}
</svg>
{%- endmacro -%}
{%- macro figure(title, words, drawing) -%}
<figure class="card"><figcaption><b>{{ title }}</b>{{ words }}</figcaption>{{ svg(drawing) }}</figure>
{%- endmacro -%}
{%- macro map(source, pictures, name, style="") -%}
<figure><img{% if style %} class="{{ style }}"{% endif %} src="{{ source }}" alt="{{ name }}"
 width="{{ pictures.width }}" height="{{ pictures.height }}"><figcaption>{{ name }}</figcaption></figure>
{%- endmacro -%}
{%- macro fact(words, share, title="") -%}
{%- if share is not none %}
<li{% if title %} title="{{ title }}"{% endif %}>{{ words }} <b>{{ share|percent }}</b></li>
{%- endif %}
{%- endmacro -%}
{%- macro advised(one) %}
<li class="{{ one.urgency }}"><div>
{%- if one.urgency == "needed" %}<span class="urgent">Needed: </span>{% endif %}{{ one.text }}</div></li>
{%- endmacro -%}
{%- macro compared(rows) -%}
<table class="compare">
<thead><tr><th>Measure</th><th class="n">before</th><th class="n">after</th><th class="n">change</th></tr></thead>
<tbody>
{%- for row in rows %}{% set change = row|change %}
<tr><th>{{ row.what }}<small>{{ row.note }}</small></th>
<td class="n" data-name="before">{{ row|value("before") }}</td>
<td class="n" data-name="after">{{ row|value("after") }}</td>
<td class="n" data-name="change"><span class="{{ change.style }}">{{ change.words }}</span></td></tr>
{%- endfor %}
</tbody></table>
{%- endmacro -%}
{%- macro legend(name, one) -%}
<div class="legend"><b>{{ name }}</b><img src="{{ one.picture }}" alt="Colours of {{ name }}" width="170" height="10">
<span>{% for tick in one.ticks %}<i>{{ tick|short }}</i>{% endfor %}</span></div>
{%- endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="{{ r.versions.report_by }}">
<title>{{ r.name }}: {{ r.headline[0] }}</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body><div class="wrap">

<div class="top"><h1><bdi>{{ r.name }}</bdi></h1><span>scene report, {{ r.versions.report_by }}</span></div>
<div class="card hero" id="verdict">
{%- if cloud %}
<figure><img src="{{ cloud.picture }}" width="{{ cloud.width }}" height="{{ cloud.height }}"
 alt="The points of the scene and its cameras, seen from behind and above the first camera">
<svg viewBox="0 0 {{ cloud.width }} {{ cloud.height }}" aria-hidden="true">
{%- for camera in cloud.cameras %}
<path class="lens{{ ' first' if loop.first }}" d="{{ camera|frustum }}"></path>
{%- endfor %}
{%- for camera in cloud.cameras if camera.labelled %}
<text class="lens-number" text-anchor="middle" x="{{ camera.centre[0] }}" y="{{ camera.centre[1] + 22 }}">
{{- camera.number }}</text>
{%- endfor %}
</svg></figure>
{%- endif %}
<div class="verdict {{ r.level }}"><span class="badge {{ r.level }}">{{ level_words }}</span>
{%- for sentence in r.headline %}<p>{{ sentence }}</p>{% endfor %}
</div>
<div class="tiles">
{%- for tile in tiles %}
<div class="tile"><b>{{ tile.value }}</b><span>{{ tile.words }}</span></div>
{%- endfor %}
</div>
</div>
{%- for text in r.missing %}
<div class="card pad missing"><b>Missing:</b> {{ text }}</div>
{%- endfor %}

<nav aria-label="Contents">
{%- for id, words in contents %}<a href="#{{ id }}">{{ words }}</a>{% endfor -%}
</nav>

{%- if r.warnings %}
<section id="warnings"><h2>Warnings</h2>
<ul class="warnings">
{%- for warning in r.warnings %}
<li>{{ warning.text }}{% if warning.way_out %}<span class="out">{{ warning.way_out }}</span>{% endif %}
{%- if warning.single %}<details class="plain"><summary>Each of them</summary>
<ul class="small-words">{% for one in warning.single %}<li>{{ one }}</li>{% endfor %}</ul></details>{% endif %}</li>
{%- endfor %}
</ul></section>
{%- endif %}

{%- if r.aligned %}
<section id="next"><h2>What to shoot next</h2>
{%- if r.advice %}
<p>Most important first, from what this scene shows of itself.</p>
<ol class="advice">
{%- for one in r.advice[:most_advice] %}{{ advised(one) }}{% endfor %}
</ol>
{%- if r.advice|length > most_advice %}
<details class="plain"><summary>{{ r.advice|length - most_advice }} more</summary><ol class="advice more">
{%- for one in r.advice[most_advice:] %}{{ advised(one) }}{% endfor %}</ol></details>
{%- endif %}
{%- else %}
<div class="card pad fine">{{ r.advice_none }}</div>
{%- endif %}
</section>
{%- endif %}

{%- if r.learning or r.gate %}
<section id="learning"><h2>Before and after learning</h2>
{%- if r.gate %}
<p>The gate {{ "accepted" if r.gate.accepted else "refused" }} what was learnt. {{ r.gate.reason|capital }}.
{%- if r.learning and not r.learning.changed %} The scene is that of the network as it was.{% endif %}</p>
{%- endif %}
{%- if r.learning and r.learning.compared %}
<div class="card scroll compare-card">{{ compared(r.learning.compared) }}</div>
{%- endif %}
{%- if r.gate and r.gate.compared %}
<details class="card"{{ " open" if not (r.learning and r.learning.compared) }}>
<summary>What the gate looked at: pairs held out from learning</summary>
<div class="inside">{{ compared(r.gate.compared) }}</div></details>
{%- endif %}
{%- if r.learning and r.learning.moved %}
<details class="card"><summary>How far each camera moved</summary><div class="inside scroll"><table>
<thead><tr><th>Photo</th><th class="n">moved, of the depth</th><th class="n">turned</th>
<th class="n">focal length</th></tr></thead><tbody>
{%- for one in r.learning.moved %}
<tr><td><bdi>{{ one.name }}</bdi></td><td class="n">{{ "%.2f"|format(one.distance_percent) }} %</td>
<td class="n">{{ "%.2f"|format(one.angle_deg) }}°</td>
<td class="n">{{ "%+.1f"|format(one.focal_percent) }} %</td></tr>
{%- endfor %}
</tbody></table></div></details>
{%- endif %}
</section>
{%- endif %}

<section id="photos"><h2>Photos</h2>
{%- if maps %}
<p>What the network said it was sure of, and what is left of it where the other pairs bear it out. Bright in
<em>confidence</em> and dark in <em>weight</em> means: sure, and contradicted.</p>
<div class="legends">
{{ legend("Depth", maps.depth) }}
{{ legend("Confidence", maps.confidence) }}
{{ legend("Weight", maps.weight) }}
<div><b>Seen by others, at the same depth</b><ul class="keys">
{%- for colour, words in coverage_keys %}<li><i style="background:{{ colour }}"></i>{{ words }}</li>{% endfor %}
</ul></div>
</div>
{%- endif %}
{%- for photo in r.photos %}
<article class="card view" id="photo-{{ photo.number }}">
<header><span class="nr">{{ photo.number }}</span><h3><bdi>{{ photo.name }}</bdi></h3>
<span class="soft">{{ photo.width_px }} &times; {{ photo.height_px }}, {{ "%.0f"|format(photo.focal_mm) }} mm</span>
{%- for words, style in photo|badges %}<span class="badge {{ style }}">{{ words }}</span>{% endfor %}</header>
{%- if maps %}{% set pictures = maps.photos[loop.index0] %}
<div class="maps">
{{ map(pictures.photo, pictures, "photo") }}
{{ map(pictures.depth, pictures, "depth") }}
{{ map(pictures.confidence, pictures, "confidence") }}
{{ map(pictures.weight, pictures, "weight") }}
{{ map(pictures.coverage, pictures, "seen by others", "pixels") }}
</div>
{%- endif %}
<ul class="facts">
{%- if photo.partners %}
<li>shares most with {% for partner in photo.partners %}{{ " and " if not loop.first -}}
<a href="#photo-{{ partner.number }}" title="{{ partner.name }}">{{ partner.number }}</a>
 <b>{{ partner.overlap|percent }}</b>{% endfor %}</li>
{%- endif %}
{{- fact("seen by others", photo.seen_share) }}
<li>points <b>{{ "{:,}".format(photo.points) }}</b></li>
{{- fact("sure, but contradicted", photo.unborne_share,
"Of the pixels the network was rather sure of, those that less than a quarter of its confidence is left of") }}
{{- fact("learnt from", photo.label_coverage) }}
{{- fact("masked", photo.masked_share or none) }}
{%- if photo.residual and photo.residual.median is not none %}
<li>residual <b>{{ photo.residual.median|percent }}</b>{{ svg(small[loop.index0], "mini") }}</li>
{%- endif %}
</ul>
</article>
{%- endfor %}
</section>

{%- if pair_map %}
<section id="pairs"><h2>Pairs</h2>
<p>Photos where their cameras stand, seen from above, each with a nose the way it looks. A line is a pair, the thicker
the more the two share.</p>
<div class="two">
<figure class="card">{{ svg(pair_map) }}
<ul class="keys">
{%- for style, words, count in pair_keys %}
<li><svg width="30" height="10" aria-hidden="true"><path class="pair {{ style }}" style="stroke-width:3;--o:.8"
 d="M2 5L28 5"></path></svg>{{ words }} ({{ count }})</li>
{%- endfor %}
</ul></figure>
<figure class="card scroll"><figcaption>
<b>{{ "All pairs" if r.pairs|length <= weakest|length else "The " ~ weakest|length ~ " weakest pairs" }}</b>
Residual: how far a pair's points lie off the scene's, in percent of the depth.</figcaption>
<table><thead><tr><th>Pair</th><th class="n">overlap</th><th class="n">residual</th><th>state</th></tr></thead>
<tbody>
{%- for pair in weakest %}
<tr><td>{{ pair.numbers[0] }}, {{ pair.numbers[1] }}</td><td class="n">{{ pair.overlap|percent }}</td>
<td class="n">{{ pair.residual|percent }}</td><td>{{ pair_words[pair.state] }}
{%- if pair.left_out and pair.state != "left_out" %}, one way round{% endif %}</td></tr>
{%- endfor %}
</tbody></table></figure>
</div></section>
{%- endif %}

{%- if r.aligned %}
<section id="residuals"><h2>Residuals</h2>
<p>How far the network's pairs lie off the finished scene, in percent of its typical depth.</p>
<div class="two charts">
{{ figure("All pixels", "mean over the pairs that hold a pixel", charts.residual) }}
{%- if charts.edges %}
{{ figure("All pairs", "median of each" ~ ("; outlined: before learning" if r.aligned.edge_residual_before else ""),
charts.edges) }}
{%- endif %}
</div></section>
<section id="focals"><h2>Focal lengths and losses</h2>
<div class="two charts">
{{ figure("Focal length of each photo", "as if on film of 36 by 24 mm; the bar is how far the single pairs spread",
charts.focals) }}
{%- if charts.alignment %}
{{ figure("Alignment", "its objective after each step; a new line begins where the objective becomes another",
charts.alignment) }}
{%- endif %}
{%- if charts.learning %}
{{ figure("Learning", "the loss of each step of fine-tuning; dashed the error of held-out pairs, which no step saw,
after each epoch; the ring marks the epoch that counts", charts.learning) }}
{%- endif %}
</div></section>
{%- endif %}

<section id="about"><h2>How it was made</h2>
{%- if r.seconds %}
<details class="card"><summary>Times: {{ total|seconds }} in all</summary><div class="inside"><table><tbody>
{%- for stage, time in r.seconds.items() %}
<tr><th>{{ stage }}</th><td class="n">{{ time|seconds }}</td><td class="wide">
<div class="time" style="width:{{ "%.1f"|format(100 * time / longest) }}%"></div></td></tr>
{%- endfor %}
</tbody></table><p class="small-words soft note">Next to nothing where a result came from the cache.</p></div></details>
{%- endif %}
{%- for title, rows in folded %}{% if rows %}
<details class="card"><summary>{{ title }}</summary><div class="inside scroll"><table><tbody>
{%- for key, words in rows.items() %}
<tr><td><code>{{ key }}</code></td><td class="mono">{{ words }}</td></tr>
{%- endfor %}
</tbody></table></div></details>
{%- endif %}{% endfor %}
</section>

<footer>The same facts for programs: report.json, written with this page. Lengths are in the scene's own unit
{{- "" if r.aligned and r.aligned.scale_known else ", which is arbitrary" }}.</footer>
</div></body></html>
"""
