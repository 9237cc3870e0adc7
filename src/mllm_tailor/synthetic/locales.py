"""What a till calls things in each country: labels, dates, currency and closing words."""

from __future__ import annotations

from dataclasses import dataclass

from mllm_tailor.synthetic import words as w
from mllm_tailor.synthetic.words import phrases


@dataclass(frozen=True)
class Locale:
    """One country's habits. `labels` maps a role to its wordings; months are short names."""

    name: str
    currencies: tuple[str, ...]
    decimal: str
    dates: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    goods: tuple[str, ...]
    trades: tuple[str, ...]
    suffixes: tuple[str, ...]
    months: tuple[str, ...]
    tax_rates: tuple[int, ...]
    rounds_to: int  # cents; 5 where the smallest coin is five cents


MONTHS_EN = w.words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")
NUMERIC_DAY_FIRST = (
    ("{d:02}/{m:02}/{Y}",) * 5
    + ("{d:02}-{m:02}-{Y}",) * 3
    + ("{d:02}/{m:02}/{y:02}",) * 2
    + ("{d:02}-{m:02}-{y:02}", "{d}/{m}/{Y}", "{d:02}.{m:02}.{Y}", "{Y}-{m:02}-{d:02}", "{Y}/{m:02}/{d:02}")
)
NAMED_MONTH = (
    "{d:02} {mon} {Y}",
    "{d:02}-{mon}-{Y}",
    "{d:02} {mon} {y:02}",
    "{d:02}/{mon}/{Y}",
    "{mon} {d:02}, {Y}",
    "{d:02}{mon}{y:02}",
    "{d}{mon}{Y}",
)

LABELS_MY = {
    "document": phrases(
        "TAX INVOICE|TAX INVOICE|Tax Invoice|TAX INVOICE|CASH BILL|CASH RECEIPT|RECEIPT|INVOICE|SIMPLIFIED TAX INVOICE|"
        "OFFICIAL RECEIPT|CASH SALES|TAX INVOICE (CASH)|RESIT"
    ),
    "number": phrases(
        "Invoice No|INV NO.|Bill No|Doc No.|Document No|Receipt No|Receipt #|Trans|CB#|Slip No|Check #|Invoice #|"
        "CS No|Order No|INV#|Ref No"
    ),
    "date": phrases("Date|DATE|Date|Date|Sales Date|Inv Date|Bill Date|Tarikh|DATE ISSUED|Trans Date"),
    "time": phrases("Time|TIME|Masa|Time"),
    "cashier": phrases("Cashier|CASHIER|Server|Served By|Salesperson|Operator|Staff|User|Juruwang"),
    "counter": phrases("Counter|Terminal|POS|Reg|Till No|Station|M/C|Table|Pump"),
    "member": phrases("Member|Customer|Client|Member ID|Cust|Valued Customer"),
    "company_id": phrases("Co. Reg No|CO REG|Company Reg No.|ROC NO|Reg No|SSM|BRN"),
    "tax_id": phrases("GST ID|GST ID NO|GST Reg No|GST No|GST Reg. No.|SST ID|SST Reg No|Service Tax ID"),
    "phone": phrases("Tel|TEL|Tel No|Phone|T|H/P|Mobile|TEL NO"),
    "fax": phrases("Fax|FAX|F|Fax No"),
    "description": phrases("Description|Item|DESCRIPTION|Code/Desc|Items|ITEM NAME|Product"),
    "quantity": phrases("Qty|QTY|Quantity|Qty|UOM"),
    "price": phrases("Price|U.Price|Unit Price|PRICE|S/Price|U/P"),
    "amount": phrases("Amount|Total|Amt (RM)|RM|AMOUNT|Amt|Total (RM)"),
    "items": phrases("Item(s)|Item Count|Total Items|No of Items|Total Qty|TOTAL QTY|Qty(s)|Total Quantity"),
    "subtotal": phrases(
        "Sub Total|Subtotal|SUB-TOTAL|SUB TOTAL|Total Sales (Excluding GST)|Total Excl. GST|Total (Excluding GST)|"
        "Gross Amount|Sub-Total (Ex)|Total Gross|Total Sales"
    ),
    "discount": phrases("Discount|DISC|Item Discount|Bill Disc|Less|Member Discount|Total Savings|Voucher"),
    "service": phrases("Service Charge 10%|10% Srv Chg|SVC CHG 10%|Service Chg (10%)"),
    "tax": phrases(
        "GST @{r}%|Total GST|GST ({r}%)|GST {r}%|Service Tax {r}%|SST {r}%|GST payable ({r}%)|Add GST|TAX {r}%"
    ),
    "rounding": phrases("Rounding|Rounding Adj|Rounding Adjustment|ROUND ADJ|Round Adj|Rounding Adj.|Bill Rounding"),
    "total": phrases(
        "TOTAL|TOTAL|Total|Total|GRAND TOTAL|Grand Total|TOTAL AMOUNT|Total Amount|NETT TOTAL|Net Total|Nett Amount|"
        "TOTAL SALES (INCLUSIVE OF GST)|Total Sales (Inclusive of GST)|Total Inclusive GST|Total Sales Inclusive GST|"
        "Total (Inclusive of GST)|AMOUNT DUE|Amount Due|TOTAL PAYABLE|Total Payable|Total Incl. GST|FINAL TOTAL|"
        "Total Rounded|Total After Rounding|Net Amt|Total Sales Incl GST|JUMLAH|Total Due|Bill Total|Total RM|"
        "Total Amt Payable|Total (GST Incl)|TOTAL RM INCL. OF GST|Balance Due"
    ),
    "cash": phrases("CASH|Cash|Cash|Cash Received|Paid|Tender|CASH TENDERED|Cash Paid|Tunai|AMT PAID|Payment"),
    "change": phrases("CHANGE|Change|Change|Change Due|Baki|CHANGE DUE|Balance"),
    "card": phrases("VISA|MASTER|Credit Card|VISA CARD|MyDebit|Debit Card|eWallet|CREDIT|AMEX|Bank Card"),
    "summary": phrases("GST Summary|GST SUMMARY|GST Analysis|Tax Summary|GST Summary"),
    "thanks": phrases(
        "Thank You|THANK YOU|Thank you. Please come again.|THANK YOU PLEASE COME AGAIN|Terima Kasih|"
        "TERIMA KASIH SILA DATANG LAGI|Thank you for your patronage|Thank You & Come Again!|*** THANK YOU ***|"
        "Thank you for shopping with us|** Thank You **"
    ),
    "notes": phrases(
        "Goods sold are not returnable|Goods sold are not refundable & exchangeable|No cash refund|"
        "Exchange within 7 days with receipt|Please keep this receipt for warranty|"
        "Barang dijual tidak boleh dikembalikan|This is a computer generated receipt|No signature is required|"
        "Like us on our page|E. & O. E.|Cheque should be crossed and made payable to us|"
        "Operating hours 10.00AM - 10.00PM|Member points: 12.50|Customer copy|Powered by quick till|"
        "Prices are inclusive of tax where applicable|Have a nice day|Tell us how we did today|"
        "Goods once sold cannot be returned|Items can be exchanged within 3 days|Duplicate copy|"
        "Complaints must be made within 24 hours|Buka setiap hari|Wifi: guest2018"
    ),
}
LABELS_SG = LABELS_MY | {
    "tax": phrases("GST @{r}%|GST {r}%|{r}% GST|Add {r}% GST"),
    "tax_id": phrases("GST Reg No|UEN|Co Reg / GST No"),
    "amount": phrases("Amount|Total|S$|Amt ($)"),
    "total": phrases(
        "TOTAL|Total|GRAND TOTAL|Nett Total|TOTAL DUE|Amount Due|Total Payable|Net Total|Total (Incl GST)"
    ),
    "subtotal": phrases("Sub Total|Subtotal|SUB-TOTAL|Total Before GST"),
    "notes": phrases(
        "GST included|No refund|Please retain receipt|Follow us online|Have a nice day|Prices subject to GST"
    ),
    "thanks": phrases("Thank You|THANK YOU|Please come again|Thank you for dining with us"),
}
LABELS_EN = LABELS_MY | {
    "document": phrases("RECEIPT|SALES RECEIPT|VAT RECEIPT|CUSTOMER COPY|GUEST CHECK|INVOICE||"),
    "tax_id": phrases("VAT No|VAT Reg No|VAT Number|Tax ID"),
    "tax": phrases("VAT @ {r}%|VAT {r}%|TAX {r}%|Sales Tax|Tax|Incl. VAT {r}%"),
    "amount": phrases("Amount|Total|Price|GBP|AMT"),
    "total": phrases(
        "TOTAL|Total|TOTAL DUE|Total to pay|BALANCE DUE|Amount Due|GRAND TOTAL|Balance|TOTAL TO PAY|Order Total|"
        "TOTAL SALE"
    ),
    "subtotal": phrases("Subtotal|SUBTOTAL|Sub-total|Net|Goods|Food & Drink"),
    "rounding": phrases("Rounding"),
    "service": phrases("Service 10%|Optional Service|Gratuity"),
    "summary": phrases("VAT Summary|VAT Analysis"),
    "notes": phrases(
        "Please retain for your records|Returns within 30 days with receipt|Tell us how we did|"
        "You were served by till 4|Have a great day|All prices include tax|Join our rewards programme|"
        "Open 7 days a week|Customer copy"
    ),
    "thanks": phrases(
        "Thank you|THANK YOU FOR SHOPPING WITH US|Thanks for visiting|Please call again|THANK YOU COME AGAIN"
    ),
    "cashier": phrases("Cashier|Server|Served by|Clerk|Associate|Host|Op"),
}


def _labels(**roles: str) -> dict[str, tuple[str, ...]]:
    """English labels replaced where a language has its own."""
    return LABELS_EN | {role: phrases(text) for role, text in roles.items()}


LABELS_DE = _labels(
    document="RECHNUNG|KASSENBON|Quittung|BELEG|Rechnung",
    number="Beleg-Nr.|Bon-Nr.|Rechnung Nr.|Bon",
    date="Datum|DATUM",
    time="Uhrzeit|Zeit",
    cashier="Bediener|Kassierer|Es bediente Sie",
    counter="Kasse|Tisch|Filiale",
    member="Kunde|Kundennr.",
    company_id="HRB|Reg.-Nr.",
    tax_id="USt-IdNr.|Steuer-Nr.|UID Nr.",
    phone="Tel.|Telefon|Tel",
    fax="Fax",
    description="Artikel|Bezeichnung",
    quantity="Menge|Anz",
    price="Preis|E-Preis",
    amount="EUR|Betrag|Summe",
    items="Artikel|Posten|Anzahl",
    subtotal="Zwischensumme|Netto|Nettobetrag",
    discount="Rabatt|Nachlass",
    service="Bedienung",
    tax="MwSt {r}%|USt {r}%|inkl. MwSt {r}%",
    rounding="Rundung",
    total="SUMME|Summe|Gesamt|GESAMTBETRAG|Zu zahlen|Summe EUR|Total|Endbetrag|Gesamtbetrag",
    cash="BAR|Bar|Gegeben|Gegeben bar",
    change="Rückgeld|Zurück|RÜCKGELD",
    card="EC-Karte|Girocard|VISA|Kartenzahlung",
    summary="Steuer|MwSt-Aufstellung",
    thanks="Vielen Dank für Ihren Einkauf|Danke und auf Wiedersehen|Vielen Dank für Ihren Besuch!|Schönen Tag noch",
    notes="Umtausch nur mit Bon|Es bediente Sie unser Team|Alle Preise inkl. MwSt|Öffnungszeiten 8-20 Uhr|"
    "Bitte aufbewahren",
)
LABELS_FR = _labels(
    document="FACTURE|TICKET|Reçu|TICKET DE CAISSE|Facture",
    number="Ticket n°|Facture n°|N°|Note",
    date="Date|DATE|Le",
    time="Heure",
    cashier="Caissier|Serveur|Vendeur|Hôtesse",
    counter="Caisse|Table|Borne",
    member="Client|Carte",
    company_id="SIRET|RCS|SIREN",
    tax_id="TVA|N° TVA|TVA intra",
    phone="Tél.|Tél|Tel",
    fax="Fax",
    description="Désignation|Article",
    quantity="Qté|Quantité",
    price="P.U.|Prix",
    amount="Montant|EUR|Total",
    items="Articles|Nb articles|Lignes",
    subtotal="Sous-total|Total HT|Montant HT",
    discount="Remise|Réduction",
    service="Service compris",
    tax="TVA {r}%|dont TVA {r}%|T.V.A. {r}%",
    rounding="Arrondi",
    total="TOTAL|TOTAL TTC|Total TTC|À PAYER|Net à payer|TOTAL À PAYER|Montant dû|Total EUR",
    cash="Espèces|ESPÈCES|Reçu",
    change="Rendu|Monnaie rendue|RENDU",
    card="Carte bancaire|CB|Carte bleue|VISA",
    summary="Détail TVA|TVA",
    thanks="Merci de votre visite|MERCI ET À BIENTÔT|Merci et au revoir|À bientôt",
    notes="Ni repris ni échangé|Ticket à conserver|Échange sous 15 jours|Ouvert du lundi au samedi|Prix en euros",
)
LABELS_ES = _labels(
    document="FACTURA|TICKET|RECIBO|Factura simplificada",
    number="Factura nº|Ticket|Nº|Recibo nº",
    date="Fecha|FECHA",
    time="Hora",
    cashier="Cajero|Le atendió|Camarero|Vendedor",
    counter="Caja|Mesa|Tienda",
    member="Cliente|Socio",
    company_id="C.I.F.|CIF|NIF",
    tax_id="NIF|N.I.F.",
    phone="Tel.|Teléfono|Tfno.",
    fax="Fax",
    description="Descripción|Artículo|Producto",
    quantity="Cant.|Uds",
    price="Precio|P.Unit",
    amount="Importe|Total|EUR",
    items="Artículos|Nº artículos",
    subtotal="Subtotal|Base imponible|Suma",
    discount="Dto.|Descuento",
    service="Servicio",
    tax="IVA {r}%|I.V.A. {r}%|Incl. IVA {r}%",
    rounding="Redondeo",
    total="TOTAL|TOTAL A PAGAR|Total|Importe total|Total (IVA incl.)|TOTAL EUROS|A pagar",
    cash="Efectivo|EFECTIVO|Entregado",
    change="Cambio|CAMBIO|Devuelto",
    card="Tarjeta|VISA|Tarjeta bancaria",
    summary="Desglose IVA|IVA",
    thanks="Gracias por su visita|GRACIAS POR SU COMPRA|Muchas gracias|Vuelva pronto",
    notes="IVA incluido|Cambios en 15 días con ticket|No se admiten devoluciones|Horario de 9 a 21 h|"
    "Conserve su ticket",
)
LABELS_IT = _labels(
    document="RICEVUTA|DOCUMENTO COMMERCIALE|FATTURA|SCONTRINO",
    number="Doc. n.|N.|Scontrino n.|Fattura n.",
    date="Data|DATA",
    time="Ora",
    cashier="Cassiere|Operatore|Servito da",
    counter="Cassa|Tavolo|Negozio",
    member="Cliente|Tessera",
    company_id="REA|C.F.|Reg. Imp.",
    tax_id="P.IVA|P. IVA|Partita IVA",
    phone="Tel.|Tel|Telefono",
    fax="Fax",
    description="Descrizione|Articolo",
    quantity="Q.tà|Qtà",
    price="Prezzo|Pr.",
    amount="Importe|EUR|Euro",
    items="Pezzi|Articoli|N. pezzi",
    subtotal="Subtotale|Imponibile|SUBTOTALE",
    discount="Sconto|SCONTO",
    service="Coperto",
    tax="IVA {r}%|di cui IVA|I.V.A. {r}%",
    rounding="Arrotondamento",
    total="TOTALE|TOTALE EURO|Totale complessivo|TOTALE COMPLESSIVO|Totale|Da pagare|Importo totale",
    cash="Contanti|CONTANTI|Pagato",
    change="Resto|RESTO",
    card="Carta|Bancomat|Carta di credito|VISA",
    summary="Riepilogo IVA|IVA",
    thanks="Grazie e arrivederci|GRAZIE PER LA VISITA|Arrivederci e grazie|Grazie",
    notes="Conservare lo scontrino|Cambio merce entro 8 giorni|IVA inclusa|Aperto tutti i giorni|Prezzi in euro",
)

DAY_FIRST = NUMERIC_DAY_FIRST + NAMED_MONTH
MONTH_FIRST = (
    ("{m:02}/{d:02}/{Y}",) * 3
    + ("{m:02}/{d:02}/{y:02}",) * 2
    + ("{m}/{d}/{Y}", "{m:02}-{d:02}-{Y}", "{mon} {d:02}, {Y}", "{mon} {d} {Y}")
)
POINTS = ("{d:02}.{m:02}.{Y}",) * 3 + ("{d:02}.{m:02}.{y:02}", "{d}. {mon} {Y}", "{Y}-{m:02}-{d:02}")
SLASHES = ("{d:02}/{m:02}/{Y}",) * 3 + ("{d:02}/{m:02}/{y:02}", "{d:02}-{m:02}-{Y}", "{d} {mon} {Y}")

LOCALES = {
    locale.name: locale
    for locale in (
        Locale(
            "my",
            ("RM", "", "", "RM "),
            ".",
            DAY_FIRST,
            LABELS_MY,
            w.GOODS_MY,
            w.TRADES_MY,
            w.SUFFIXES_MY,
            MONTHS_EN,
            (6, 6, 6, 0, 8),
            5,
        ),
        Locale(
            "sg",
            ("$", "S$", ""),
            ".",
            DAY_FIRST,
            LABELS_SG,
            w.GOODS_MY + w.GOODS_EN,
            w.TRADES_MY + w.TRADES_EN,
            w.SUFFIXES_SG,
            MONTHS_EN,
            (7, 8, 9),
            5,
        ),
        Locale(
            "uk",
            ("£", "", "GBP "),
            ".",
            DAY_FIRST,
            LABELS_EN,
            w.GOODS_EN,
            w.TRADES_EN,
            w.SUFFIXES_UK,
            MONTHS_EN,
            (20, 5),
            1,
        ),
        Locale(
            "us",
            ("$", "", "$"),
            ".",
            MONTH_FIRST,
            LABELS_EN,
            w.GOODS_EN,
            w.TRADES_EN,
            w.SUFFIXES_US,
            MONTHS_EN,
            (7, 8, 6),
            1,
        ),
        Locale(
            "de",
            ("", "€", "EUR "),
            ",",
            POINTS,
            LABELS_DE,
            w.GOODS_DE,
            w.TRADES_DE,
            w.SUFFIXES_DE,
            w.words("Jan Feb März Apr Mai Juni Juli Aug Sep Okt Nov Dez"),
            (19, 7),
            1,
        ),
        Locale(
            "fr",
            ("", "€", "EUR "),
            ",",
            SLASHES,
            LABELS_FR,
            w.GOODS_FR,
            w.TRADES_FR,
            w.SUFFIXES_FR,
            w.words("janv. févr. mars avril mai juin juil. août sept. oct. nov. déc."),
            (20, 10),
            1,
        ),
        Locale(
            "es",
            ("", "€", "EUR "),
            ",",
            SLASHES,
            LABELS_ES,
            w.GOODS_ES,
            w.TRADES_ES,
            w.SUFFIXES_ES,
            w.words("ene feb mar abr may jun jul ago sep oct nov dic"),
            (21, 10),
            1,
        ),
        Locale(
            "it",
            ("", "€", "EUR "),
            ",",
            SLASHES,
            LABELS_IT,
            w.GOODS_IT,
            w.TRADES_IT,
            w.SUFFIXES_IT,
            w.words("gen feb mar apr mag giu lug ago set ott nov dic"),
            (22, 10),
            1,
        ),
    )
}
NAMES = tuple(LOCALES)
WEIGHTS = (62, 7, 7, 8, 5, 4, 4, 3)  # of 100 receipts; in the order of LOCALES
