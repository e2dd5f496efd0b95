"""Countries and capitals in English and German, as far as one lower-case word each names them.

GloVe has vectors of English words: a German name is looked up by its English one, and no other German is understood.
"""

# country, capital, in German if different: Land, Hauptstadt. The first 35 are the pairs of `words.capitals`.
_TABLE = """
germany berlin deutschland
france paris frankreich
italy rome italien rom
spain madrid spanien
england london
japan tokyo . tokio
china beijing . peking
russia moscow russland moskau
poland warsaw polen warschau
austria vienna österreich wien
greece athens griechenland athen
turkey ankara türkei
egypt cairo ägypten kairo
iran tehran . teheran
iraq baghdad irak bagdad
syria damascus syrien damaskus
israel jerusalem
lebanon beirut libanon
jordan amman jordanien
afghanistan kabul
pakistan islamabad
cuba havana kuba havanna
canada ottawa kanada
australia canberra australien
sweden stockholm schweden
norway oslo norwegen
denmark copenhagen dänemark kopenhagen
finland helsinki finnland
hungary budapest ungarn
ukraine kiev . kiew
portugal lisbon . lissabon
ireland dublin irland
scotland edinburgh schottland
thailand bangkok
philippines manila philippinen
belgium brussels belgien brüssel
netherlands amsterdam niederlande
switzerland bern schweiz
luxembourg luxembourg luxemburg luxemburg
czech prague tschechien prag
slovakia bratislava slowakei
slovenia ljubljana slowenien
croatia zagreb kroatien
serbia belgrade serbien belgrad
bosnia sarajevo bosnien
macedonia skopje mazedonien
albania tirana albanien
bulgaria sofia bulgarien
romania bucharest rumänien bukarest
moldova chisinau moldau
belarus minsk weißrussland
lithuania vilnius litauen
latvia riga lettland
estonia tallinn estland
iceland reykjavik island
wales cardiff
cyprus nicosia zypern nikosia
malta valletta
georgia tbilisi georgien tiflis
armenia yerevan armenien eriwan
azerbaijan baku aserbaidschan
kazakhstan astana kasachstan
uzbekistan tashkent usbekistan taschkent
turkmenistan ashgabat
kyrgyzstan bishkek kirgisistan bischkek
tajikistan dushanbe tadschikistan duschanbe
mongolia ulaanbaatar mongolei
korea seoul
taiwan taipei . taipeh
vietnam hanoi
laos vientiane
cambodia . kambodscha
indonesia jakarta indonesien
malaysia . .
singapore singapore singapur singapur
burma rangoon birma rangun
bangladesh dhaka bangladesch
india delhi indien
nepal kathmandu
bhutan thimphu
yemen sanaa jemen
oman muscat . maskat
kuwait
qatar doha katar
bahrain manama
libya tripoli libyen tripolis
tunisia tunis tunesien
algeria algiers algerien algier
morocco rabat marokko
sudan khartoum
ethiopia . äthiopien
eritrea asmara
somalia mogadishu . mogadischu
kenya nairobi kenia
uganda kampala
rwanda kigali ruanda
burundi bujumbura
tanzania dodoma tansania
congo kinshasa kongo
angola luanda
zambia lusaka sambia
zimbabwe harare simbabwe
mozambique maputo mosambik
malawi lilongwe
botswana gaborone botsuana
namibia windhoek . windhuk
africa . afrika
madagascar antananarivo madagaskar
senegal dakar
mali bamako
niger niamey
nigeria abuja
ghana accra . akkra
togo lome
cameroon . kamerun
gabon libreville gabun
liberia monrovia
mexico . mexiko
guatemala
honduras tegucigalpa
nicaragua managua nikaragua
panama
jamaica kingston jamaika
haiti
colombia bogota kolumbien
venezuela caracas
ecuador quito
peru lima
bolivia . bolivien
chile santiago
argentina . argentinien
uruguay montevideo
paraguay asunción
brazil brasilia brasilien
america washington amerika
europe . europa
asia . asien
zealand wellington
fiji suva fidschi
"""

ROWS = [(line.split() + ["."] * 4)[:4] for line in _TABLE.strip().splitlines()]
PAIRS = [(country, capital) for country, capital, *_ in ROWS[:35]]  # 35 * 34 = 1,190 questions
CAPITAL_OF = {country: capital for country, capital, *_ in ROWS if capital != "."}
ENGLISH_OF = {
    german: english for row in ROWS for english, german in zip(row[:2], row[2:], strict=True) if german != "."
}
GERMAN_OF = {english: german for german, english in ENGLISH_OF.items()}
