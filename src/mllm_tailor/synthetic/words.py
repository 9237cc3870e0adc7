"""Our own short word lists: companies, streets, towns, goods and till wordings in six languages.

Nothing here is copied from a real receipt. Names of shops are made by combining these words, so no real company is
meant by any of them; towns, states and postcode prefixes are geography.
"""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text separated by blanks."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """The phrases of a text separated by bars."""
    return tuple(part.strip() for part in text.split("|"))


# Syllables for invented names; the reader cannot have learnt these words by heart.
ONSETS = words("b br c ch d dr f fl g gl h j k kl l m n p pr r s sh st t tr v w y z")
VOWELS = words("a e i o u a e o ai ee io ou")
CODAS = words("l n r s t x m nd rk st ng") + ("",) * 8

CHINESE = words(
    "Soon Heng Lee Kim Hock Seng Wah Tai Yong Chan Fook Lim Tan Kong Ming Hua Yew Sin Guan Leong Hing Chong Eng "
    "Swee Poh Kee Lai Wong Siang Hup Joo Teck Ann Bee Chuan Fatt Loong Mei Ngai Onn Peng"
)
MALAY = words(
    "Indah Maju Jaya Mesra Bersatu Harmoni Seri Sri Cahaya Mutiara Permata Setia Damai Bestari Murni Cemerlang "
    "Sejati Utama Gemilang Bintang Mawar Melati Kencana Warisan Delima Nilam Ria Aman Bakti Sentosa"
)
PEOPLE = words(
    "Siti Ahmad Aisyah Farah Kumar Ravi Mei Ling Wei Jun Nurul Hafiz Faiz Zul Amin Priya Anand Jason Kelly Sam Alex "
    "Maria Anna Peter Julia Lukas Emma Paul Carla Luis Marco Sofia Chloe Hugo Lena Tom Kate Nina Omar Grace Ivan"
)
SURNAMES = words(
    "Tan Lim Ng Wong Abdullah Rahman Singh Nair Miller Carter Hughes Bennett Walker Schmidt Weber Becker Vogel Keller "
    "Martin Dubois Moreau Garnier Garcia Lopez Romero Navarro Rossi Ricci Conti Greco Fontana Evans Wright Cole"
)

TRADES_MY = phrases(
    "TRADING|ENTERPRISE|HARDWARE|RESTORAN|KEDAI MAKANAN|BAKERY|MINI MARKET|PHARMACY|BOOK STORE|STATIONERY|ELECTRICAL|"
    "CAFE|SEAFOOD RESTAURANT|PERNIAGAAN|SYARIKAT|AUTO PARTS|KOPITIAM|FURNITURE|HOUSEWARE|PETROL STATION|SUPERMARKET|"
    "PASARAYA|MACHINERY|GIFT SHOP|CONFECTIONERY|FRESH MART|PRINTING|OPTICAL|TEXTILE|CLINIC|PET SHOP|FLORIST|"
    "MARKETING|HOLDINGS|INDUSTRIES|TYRE SERVICE|TELECOMMUNICATION|PAPER PRODUCTS|FOOD COURT|BEAUTY SALON"
)
SUFFIXES_MY = phrases(
    "SDN BHD|SDN BHD|SDN BHD|SDN. BHD.|SDN. BHD|(M) SDN BHD|(M) SDN. BHD.|S/B|BHD|BERHAD|& CO.|(KL) SDN BHD|||"
    "(JOHOR) SDN BHD|CO. (M) BHD|GROUP SDN BHD"
)
TRADES_EN = phrases(
    "Stores|Market|Grocers|Diner|Coffee|Books|Hardware|Pharmacy|Bakery|Kitchen|Garden Centre|Hotel|Fuels|Pizza|Burgers|"
    "Outfitters|Electronics|Deli|Liquor|Pets|Toys|Bistro|Tea House|Wholesale|Brothers"
)
SUFFIXES_UK = phrases("LTD|LTD.|PLC|LIMITED|||& SONS|& CO. LTD")
SUFFIXES_US = phrases("INC|INC.|LLC|CO.|CORP.|||#0417|STORE 22")
SUFFIXES_SG = phrases("PTE LTD|PTE. LTD.|(S) PTE LTD|LLP|")
TRADES_DE = phrases(
    "Bäckerei|Getränkemarkt|Supermarkt|Gasthof|Buchhandlung|Apotheke|Baumarkt|Metzgerei|Drogerie|Café|Tankstelle|"
    "Gärtnerei|Frischemarkt"
)
SUFFIXES_DE = phrases("GmbH|GmbH & Co. KG|KG|e.K.|AG|OHG|")
TRADES_FR = phrases(
    "Boulangerie|Épicerie|Librairie|Pharmacie|Brasserie|Marché|Café|Crêperie|Pâtisserie|Fromagerie|Hôtel"
)
SUFFIXES_FR = phrases("SARL|S.A.R.L.|SAS|S.A.|EURL|& Fils|")
TRADES_ES = phrases("Panadería|Supermercado|Cafetería|Farmacia|Librería|Ferretería|Restaurante|Bodega|Frutería|Hostal")
SUFFIXES_ES = phrases("S.L.|S.A.|SL|S.L.U.|e Hijos|")
TRADES_IT = phrases("Panetteria|Alimentari|Farmacia|Libreria|Ristorante|Trattoria|Pizzeria|Gelateria|Caffè|Ferramenta")
SUFFIXES_IT = phrases("S.r.l.|SRL|S.p.A.|S.n.c.|S.a.s.|")

# Malaysia: town, postcode prefix (two or three digits), state.
TOWNS_MY = tuple(
    tuple(entry.split(","))
    for entry in [
        "Johor Bahru,81,Johor",
        "Johor Bahru,80,Johor",
        "Skudai,813,Johor",
        "Masai,817,Johor",
        "Batu Pahat,83,Johor",
        "Muar,84,Johor",
        "Kluang,86,Johor",
        "Kulai,81,Johor",
        "Ulu Tiram,818,Johor",
        "Shah Alam,40,Selangor",
        "Shah Alam,40,Selangor D.E.",
        "Petaling Jaya,46,Selangor",
        "Petaling Jaya,47,Selangor Darul Ehsan",
        "Subang Jaya,475,Selangor",
        "Klang,41,Selangor",
        "Puchong,471,Selangor",
        "Kajang,43,Selangor",
        "Cheras,432,Selangor",
        "Seri Kembangan,433,Selangor",
        "Rawang,48,Selangor",
        "Ampang,68,Selangor",
        "Semenyih,435,Selangor",
        "Sungai Buloh,47,Selangor",
        "Batu Caves,681,Selangor",
        "Kuala Lumpur,50,",
        "Kuala Lumpur,52,",
        "Kuala Lumpur,53,",
        "Kuala Lumpur,55,",
        "Kuala Lumpur,58,Wilayah Persekutuan",
        "Kuala Lumpur,59,",
        "Georgetown,10,Pulau Pinang",
        "Bayan Lepas,119,Penang",
        "Butterworth,12,Penang",
        "Bukit Mertajam,14,Penang",
        "Ipoh,30,Perak",
        "Ipoh,31,Perak Darul Ridzuan",
        "Taiping,34,Perak",
        "Teluk Intan,36,Perak",
        "Seremban,70,Negeri Sembilan",
        "Nilai,71,N. Sembilan",
        "Port Dickson,71,Negeri Sembilan",
        "Melaka,75,Melaka",
        "Kuantan,25,Pahang",
        "Temerloh,28,Pahang",
        "Alor Setar,05,Kedah",
        "Sungai Petani,08,Kedah",
        "Kangar,01,Perlis",
        "Kota Bharu,15,Kelantan",
        "Kuala Terengganu,20,Terengganu",
        "Kuching,93,Sarawak",
        "Sibu,96,Sarawak",
        "Miri,98,Sarawak",
        "Kota Kinabalu,88,Sabah",
        "Sandakan,90,Sabah",
        "Cyberjaya,630,Selangor",
        "Putrajaya,62,",
        "Labuan,87,W.P. Labuan",
    ]
)
STREETS_MY = words(
    "Dinar Kenari Merpati Cempaka Bunga Raya Angsa Permas Sagu Rosmerah Tampoi Kebudayaan Pelabur Perdana Putra Kapar "
    "Temenggung Laksamana Bendahara Hang Merdeka Industri Teknologi Impian Bakawali Anggerik Kuning Hijau Bayu Tasik "
    "Bukit Sungai Harmonium Pandan Molek Pulai Kota Setia Ampang Genting Pahang Meru Kasturi Emas Perak Suria Wangsa "
    "Megah Alam Kinrara Puteri Sutera Ceria Tropika Rambutan Durian Manggis Nipah Cengal Meranti Jati"
)
AREAS_MY = phrases(
    "Taman|Taman|Taman|Bandar Baru|Bandar|Desa|Kampung|Pusat Bandar|Kawasan Perindustrian|Seksyen|Pusat Perdagangan|"
    "Plaza|Dataran|Kompleks|Medan|Bukit"
)
STREETS_EN = words(
    "High Church Station Mill Park Queen King Bridge Market London Victoria Green Manor Main Oak Maple Cedar Elm "
    "Washington Lake Hill Walnut Spring Ridge River Sunset Lincoln Jackson Chestnut Forest Harbour Castle Orchard Bedok"
)
TOWNS_UK = phrases(
    "London,SE1 7PB|London,N1 9GU|Leeds,LS1 4DY|Bristol,BS1 5TR|York,YO1 8RN|Exeter,EX4 3SR|Oxford,OX1 2JD|"
    "Cardiff,CF10 1EP|Glasgow,G2 1AL|Norwich,NR2 1TF|Brighton,BN1 1EE|Sheffield,S1 2HE|Derby,DE1 3AH|Bath,BA1 1SU"
)
TOWNS_US = phrases(
    "Springfield,IL 627|Austin,TX 787|Portland,OR 972|Denver,CO 802|Boise,ID 837|Tampa,FL 336|Albany,NY 122|"
    "Reno,NV 895|Tucson,AZ 857|Madison,WI 537|Omaha,NE 681|Dayton,OH 454|Salem,MA 019|Fresno,CA 937|Macon,GA 312"
)
TOWNS_DE = phrases(
    "Köln,50|München,80|Düsseldorf,40|Nürnberg,90|Leipzig,04|Göttingen,37|Lübeck,23|Münster,48|Würzburg,97|Bonn,53|"
    "Ulm,89|Kassel,34|Jena,07|Fürth,90|Erfurt,99"
)
STREETS_DE = phrases(
    "Hauptstraße|Bahnhofstr.|Gartenweg|Lindenallee|Schulstraße|Marktplatz|Kirchgasse|Goethestr.|Mühlenweg|Königsallee|"
    "Bergstraße|Am Rathaus"
)
TOWNS_FR = phrases(
    "Paris,750|Lyon,690|Nîmes,300|Orléans,450|Besançon,250|Lille,590|Nantes,440|Béziers,345|Dijon,210|Tours,370"
)
STREETS_FR = phrases(
    "rue de la République|avenue Foch|rue du Marché|place de l'Église|boulevard Voltaire|rue des Écoles|"
    "quai de la Gare|allée des Tilleuls|rue Victor Hugo|chemin du Moulin"
)
TOWNS_ES = phrases(
    "Madrid,280|Málaga,290|Córdoba,140|León,240|Cádiz,110|Bilbao,480|Murcia,300|Gijón,332|Lleida,250|Alcalá,288"
)
STREETS_ES = phrases(
    "Calle Mayor|Avda. de la Constitución|Plaza de España|C/ San Martín|Paseo del Río|C/ Nueva|Ronda Sur|Calle Jardín"
)
TOWNS_IT = phrases(
    "Roma,001|Milano,201|Forlì,471|Torino,101|Verona,371|Pisa,561|Bari,701|Siena,531|Cefalù,900|Udine,331"
)
STREETS_IT = phrases(
    "Via Roma|Corso Garibaldi|Piazza della Libertà|Via Dante|Viale dei Mille|Via San Marco|Largo Verdi|Via Nazionale"
)

GOODS_MY = phrases(
    "Kopi O|Teh Tarik|Teh O Ais Limau|Nasi Goreng|Nasi Lemak Ayam|Mee Goreng|Roti Canai|Milo Ais|Char Kuey Teow|"
    "Laksa|Hainan Chicken Rice|Satay Ayam|Ayam Goreng|Ikan Bakar|Sup Tulang|Wantan Mee|Tom Yam Seafood|"
    "Kangkung Belacan|Herbal Tea|Chinese Tea|Iced Lemon Tea|Mineral Water|Coconut Jelly|Kaya Toast|Half Boiled Egg|"
    "Curry Puff|Red Bean Bun|Pandan Chiffon|Chocolate Cake|Butter Cookies|White Bread|Fresh Milk|Soya Bean Milk|"
    "Cooking Oil|Jasmine Rice|Instant Noodle|Chili Sauce|Oyster Sauce|Sugar|Garlic|Big Onion|Fuji Apple|Dish Wash|"
    "Toilet Roll|Tissue Box|Shampoo|Toothpaste|Plastic Bag|A4 Paper|Ball Pen|Glue Stick|Marker Pen|Exercise Book|"
    "Stapler|Clear File|Battery AA|LED Bulb|PVC Pipe|Wall Plug|Screw Set|Paint Brush|Masking Tape|Hand Glove|"
    "Door Lock|Hose Clip|Cable Tie|Extension Socket|Paracetamol|Cough Syrup|Vitamin C|Face Mask|Eye Drop|Diesel|"
    "Unleaded 95|Engine Oil|Air Filter|Parking Fee|Photocopy|Phone Case|USB Cable|Umbrella|Slipper|T-Shirt|"
    "Baby Wipes|Cat Food|Flower Pot|Gift Wrap|Birthday Card"
)
SIZES = phrases(
    "500ml|1.5L|250g|1kg|5kg|80gsm|12pcs|2 x 100g|20mm|3/4\"|(L)|(M)|(S)|Set A|No.5|9W|4s|B/F|(Hot)|(Ice)|x6|10's|"
    '70g|450g|6"'
)
GOODS_EN = phrases(
    "Whole Milk|Brown Bread|Cheddar Cheese|Orange Juice|Bananas|Potatoes|Ground Beef|Chicken Breast|Latte|Flat White|"
    "Cheeseburger|French Fries|Caesar Salad|Apple Pie|Soup of the Day|Club Sandwich|Draft Beer|House Wine|Batteries|"
    "Notebook|Greeting Card|Dog Treats|Light Bulb|Duct Tape|Paper Towels|Ice Cream|Bagel|Pancakes|Iced Tea|Fish & Chips"
)
GOODS_DE = phrases(
    "Vollmilch|Brötchen|Roggenbrot|Käsekuchen|Butter|Äpfel|Kartoffeln|Hähnchenbrust|Mineralwasser|Weißbier|"
    "Kaffee Crème|Brühwürfel|Müsli|Erdbeeren|Pfand|Schokolade|Wurstsalat|Zwiebeln|Gewürzgurken|Spülmittel|"
    "Zahnbürste|Glühbirne"
)
GOODS_FR = phrases(
    "Baguette|Pain complet|Croissant|Café crème|Thé vert|Crème brûlée|Jambon|Fromage de chèvre|Pommes|Lait entier|"
    "Salade niçoise|Entrecôte|Pâtes|Vin rouge|Eau minérale|Gâteau|Huile d'olive|Beurre|Stylo|Côte d'agneau"
)
GOODS_ES = phrases(
    "Café con leche|Pan integral|Jamón serrano|Tortilla|Aceite de oliva|Piña|Plátanos|Leche entera|Cerveza|"
    "Agua mineral|Queso manchego|Bocadillo|Limón|Champú|Menú del día|Galletas|Arroz|Pimentón|Atún|Azúcar"
)
GOODS_IT = phrases(
    "Caffè|Cappuccino|Pane|Prosciutto|Mozzarella|Pizza margherita|Acqua naturale|Tiramisù|Pasta|Olio d'oliva|Latte|"
    "Caffè macchiato|Insalata|Vino rosso|Gelato|Pomodori|Tè freddo|Biscotti|Bistecca|Penna"
)
