"""How the page looks: light or dark as the reader's system is, on a phone, and on paper."""

STYLE = """
:root{color-scheme:light dark;
--bg:#f4f6f8;--card:#fff;--ink:#18212d;--soft:#5a6676;--line:#dfe5ec;--accent:#0b63a8;--accent-soft:#d9eaf7;
--good:#00705a;--good-bg:#e1f3ee;--fair:#8f5600;--fair-bg:#fdf1dc;--poor:#a8380a;--poor-bg:#fce6dc;
--orange:#d55e00;--grey:#97a1ae;--shadow:0 1px 2px rgba(20,32,48,.06),0 6px 20px rgba(20,32,48,.05)}
@media (prefers-color-scheme:dark){:root{
--bg:#0d1219;--card:#161d27;--ink:#e7ecf3;--soft:#9ba8b8;--line:#283241;--accent:#63b3ee;--accent-soft:#17324a;
--good:#4cc9a6;--good-bg:#10302a;--fair:#f0b65a;--fair-bg:#33270f;--poor:#ff9466;--poor-bg:#3a1d12;
--orange:#f08a3c;--grey:#76828f;--shadow:none}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.wrap{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1,h2,h3{line-height:1.2;margin:0;text-wrap:balance}
h1{font-size:1.05rem;font-weight:600;color:var(--soft);overflow-wrap:anywhere}
h2{font-size:1.3rem;letter-spacing:-.01em}
h3{font-size:1rem}
p{margin:.4em 0}
.soft{color:var(--soft)}.small-words{font-size:.86rem}
bdi{overflow-wrap:anywhere}
a{color:var(--accent)}
section{margin-top:40px;scroll-margin-top:12px}
section>h2+p{margin-top:6px;color:var(--soft);max-width:76ch}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;box-shadow:var(--shadow)}
.pad{padding:18px 20px}
.top{display:flex;justify-content:space-between;gap:12px;align-items:baseline;margin-bottom:14px}
.top span{color:var(--soft);font-size:.86rem;white-space:nowrap}
.hero{overflow:hidden}
.hero figure{margin:0;position:relative;background:#10161f;line-height:0}
.hero figure img{width:100%;height:auto;display:block}
.hero figure svg{position:absolute;inset:0;width:100%;height:100%}
.hero .lens{fill:rgba(255,196,120,.10);stroke:#ffc478;stroke-width:1.8;stroke-linejoin:round}
.hero .lens.first{stroke:#fff;fill:rgba(255,255,255,.14)}
.hero .lens-number{fill:#fff;font:600 17px system-ui,sans-serif;paint-order:stroke;stroke:#10161f;stroke-width:4px}
.verdict{padding:22px 24px 20px;border-left:6px solid var(--grey)}
.verdict.good{border-color:var(--good)}.verdict.fair{border-color:var(--fair)}.verdict.poor{border-color:var(--poor)}
.verdict p{margin:.5em 0 0;font-size:1.45rem;line-height:1.3;font-weight:650;letter-spacing:-.015em;
overflow-wrap:anywhere}
.verdict p+p{font-size:1.12rem;font-weight:500;letter-spacing:0;color:var(--soft)}
.badge{display:inline-block;border-radius:99px;padding:3px 12px;font-size:.86rem;font-weight:650;
background:var(--line);color:var(--ink)}
.badge.good{background:var(--good-bg);color:var(--good)}.badge.fair{background:var(--fair-bg);color:var(--fair)}
.badge.poor{background:var(--poor-bg);color:var(--poor)}
.tiles{display:flex;flex-wrap:wrap;gap:1px;background:var(--line);
border-top:1px solid var(--line)}
.tile{flex:1 1 150px;background:var(--card);padding:14px 20px 16px}
.tile b{display:block;font-size:1.35rem;line-height:1.25;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile span{display:block;font-size:.82rem;color:var(--soft);line-height:1.35}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;margin:18px 2px 0;font-size:.92rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
ol.advice,ul.warnings{list-style:none;margin:14px 0 0;padding:0;display:grid;gap:10px}
.advice>li,.warnings>li{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:13px 18px;
overflow-wrap:anywhere}
.advice>li{display:grid;grid-template-columns:auto 1fr;gap:0 14px;align-items:start;counter-increment:advice}
.advice>li::before{content:counter(advice);width:28px;height:28px;border-radius:50%;display:grid;place-items:center;
font-weight:700;font-size:.9rem;background:var(--accent-soft);color:var(--accent)}
.advice>li.needed::before{background:var(--poor-bg);color:var(--poor)}
ol.more{counter-reset:advice 8}.advice .urgent{color:var(--poor);font-weight:650}
.warnings>li{border-left:5px solid var(--fair)}
.warnings .out{color:var(--soft);display:block;margin-top:2px}
.fine{border-left:5px solid var(--good);margin-top:14px}
.warnings details ul{margin:0;padding:0 0 0 20px}
.compare-card{margin-top:14px}.note{padding:0 12px}.legends .keys{margin:2px 0 0}
.missing{border-left:5px solid var(--grey);margin-top:22px}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{text-align:left;padding:10px 12px;border-top:1px solid var(--line);vertical-align:top}
thead th{border-top:0;color:var(--soft);font-weight:600;font-size:.82rem}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td small,th small{display:block;color:var(--soft);font-size:.82rem;line-height:1.4;font-weight:400;max-width:56ch}
tbody th{font-weight:600}
.better{color:var(--good);font-weight:600}.worse{color:var(--poor);font-weight:600}
.scroll{overflow-x:auto}
.two{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px;margin-top:14px}
.two figure{margin:0;padding:16px 18px 12px;min-width:0;display:flex;flex-direction:column}
.two figure>svg{margin:auto 0}
.two.charts>figure:last-child:nth-child(odd){grid-column:1/-1;display:grid;grid-template-columns:1fr 1fr;gap:34px}
.two figcaption{font-size:.88rem;color:var(--soft);margin-bottom:8px}
.two figcaption b{display:block;color:var(--ink);font-size:1rem}
.chart{display:block;width:100%;height:auto;overflow:visible}
.t{fill:var(--ink);font:12px system-ui,sans-serif}.t.small{font-size:11px;fill:var(--soft)}
.t.number{font-size:12.5px;font-weight:700;fill:#fff}.t.tiny{font-size:9.5px}.t.least{font-size:6.5px}
.axis{stroke:var(--grey);stroke-width:1}.grid{stroke:var(--line);stroke-width:1}
.bar{fill:var(--accent);opacity:.78}.outline{fill:none;stroke:var(--orange);stroke-width:1.8}
.median{stroke:var(--accent);stroke-width:1.6}
.median-before{stroke:var(--orange);stroke-width:1.6;stroke-dasharray:4 3}
.curve{fill:none;stroke:var(--accent);stroke-width:2;stroke-linejoin:round}
.curve.second{stroke:var(--orange);stroke-dasharray:5 4}
.dot{fill:var(--accent)}.dot.second{fill:var(--orange)}
.dot.best{fill:var(--card);stroke:var(--orange);stroke-width:3}
.span{fill:var(--accent);opacity:.3;rx:3px}
.pair{fill:none;stroke-linecap:round}.pair.good{stroke:var(--accent);opacity:var(--o)}
.pair.little{stroke:var(--grey);opacity:.5}
.pair.contradicts{stroke:var(--orange);stroke-dasharray:7 6;opacity:.9}
.pair.left-out{stroke:var(--grey);stroke-dasharray:1 6;opacity:.8}
.photo{fill:var(--accent);stroke:var(--card);stroke-width:2}.photo.doubtful{fill:var(--orange)}
.nose{fill:var(--accent);opacity:.55}
@media (prefers-color-scheme:dark){.photo{fill:#1f74b8}.photo.doubtful{fill:#b8560c}}
.keys{display:flex;flex-wrap:wrap;gap:4px 16px;margin:10px 0 2px;padding:0;list-style:none;font-size:.84rem;
color:var(--soft)}
.keys svg,.keys i{vertical-align:middle;margin-right:6px}
.keys i{display:inline-block;width:14px;height:14px;border-radius:3px;border:1px solid rgba(128,128,128,.35)}
.legends{display:flex;flex-wrap:wrap;gap:12px 26px;margin:14px 0 4px;font-size:.84rem}
.legend{width:170px}
.legend img{display:block;width:100%;height:10px;border-radius:3px;image-rendering:auto}
.legend i{font-style:normal}
.legend span{display:flex;justify-content:space-between;color:var(--soft);font-variant-numeric:tabular-nums}
.view{margin-top:14px;padding:14px 16px 12px}
.view header{display:flex;flex-wrap:wrap;align-items:center;gap:4px 10px;margin-bottom:10px}
.view header .soft{font-size:.86rem}
.nr{display:inline-grid;place-items:center;min-width:26px;height:26px;padding:0 6px;border-radius:99px;
background:var(--accent);color:var(--card);font-weight:700;font-size:.86rem}
.maps{display:grid;grid-template-columns:repeat(5,minmax(0,1fr));gap:8px}
.maps figure{margin:0;min-width:0}
.maps img{display:block;width:100%;height:auto;border-radius:6px;background:var(--line)}
.maps img.pixels{image-rendering:pixelated}
.maps figcaption{font-size:.8rem;color:var(--soft);margin-top:3px}
.facts{display:flex;flex-wrap:wrap;gap:4px 22px;margin:10px 0 0;padding:0;list-style:none;font-size:.88rem;
color:var(--soft);align-items:center}
.facts b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.facts svg{width:88px;height:21px;vertical-align:-4px;margin-left:8px}
details{margin-top:12px}
summary{cursor:pointer;padding:13px 18px;font-weight:600}
details>.inside{padding:0 8px 8px;border-top:1px solid var(--line)}
.plain summary{padding:8px 0;font-size:.9rem;color:var(--accent)}
.time{height:10px;border-radius:4px;background:var(--accent);opacity:.75;min-width:2px}
td.wide{width:45%}
code,.mono{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
footer{margin-top:44px;color:var(--soft);font-size:.84rem}
@media (max-width:760px){
.wrap{padding:16px 12px 40px}.two{grid-template-columns:minmax(0,1fr)}
.verdict{padding:16px 16px 14px}.verdict p{font-size:1.2rem}.verdict p+p{font-size:1.02rem}
.tile{flex-basis:40%;padding:11px 16px 12px}.tile b{font-size:1.15rem}
.maps{grid-template-columns:repeat(2,minmax(0,1fr))}.maps figure:first-child{grid-column:1/-1}
.two.charts>figure:last-child:nth-child(odd){display:flex;gap:0}
.compare thead{display:none}.compare tr{display:grid;grid-template-columns:1fr 1fr 1.5fr;
border-top:1px solid var(--line);padding:10px 12px}.compare tr:first-child{border-top:0}
.compare th,.compare td{border:0;padding:0}.compare th{grid-column:1/-1;margin-bottom:5px}
.compare td.n{text-align:left}.compare td.n:last-child{text-align:right}
.compare td::before{content:attr(data-name);display:block;color:var(--soft);font-size:.74rem}
.compare td:empty{display:none}.compare td:empty+td:not(:empty){grid-column:1/-1;text-align:left}
.pad{padding:14px}th,td{padding:9px 7px}table{font-size:.9rem}section{margin-top:30px}
.hero .lens{stroke-width:3}.hero .lens-number{font-size:30px}}
@media print{
:root{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--accent:#0b63a8;--accent-soft:#e8f1f8;
--good:#00705a;--good-bg:#fff;--fair:#8f5600;--fair-bg:#fff;--poor:#a8380a;--poor-bg:#fff;--orange:#d55e00;
--grey:#777;--shadow:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:11pt}.wrap{max-width:none;padding:0}nav{display:none}
.card,.advice>li,.warnings>li,figure,tr{break-inside:avoid}h2{break-after:avoid}
details::details-content{content-visibility:visible;display:block;block-size:auto}}
"""
